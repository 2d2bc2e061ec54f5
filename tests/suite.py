"""Run the whole test suite: `python -m tests.suite`, the recipe of `make test`.

    prepare    install Slurm, Open MPI, Charliecloud and Podman with apt-get (root on Debian only)

Then three lanes at the same time:

    local                   unit and integration tests
    vllm-env, vllm, lint    install the CPU build of vLLM; tests with real vLLM engines; then ruff,
                            mypy and docs. If SGLang is required, its parts follow those of vLLM
    cluster                 tests on a real Slurm cluster, which mostly wait

A part that fails does not stop the others. The exit code is 1 if any part failed. Output lines
start with the name of their part. The last lines name all failed tests, since CI shows only those.
"""

import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_dynamo.demo import provision, provision_sglang
from hpc_dynamo.demo.engine_environment import MODEL_GB
from tests.cluster.install import missing_packages, not_installable
from tests.support.requirements import required

PYTEST = (sys.executable, "-m", "pytest", "-q", "--durations=15")
# pytest then prints the reasons in the short summary in full, not cut at 80 columns.
UNCUT = {"BUILD_NUMBER": "1"}
# Longest line about a failed test at the end of the output.
FAILURE_CHARS = 400
# Longest line that a part may print. asyncio's default of 64 KiB is too short for some assertions.
LINE_BYTES = 2**24
# Tests that share only the machine. They wait as much as they compute, and this lane ends last:
# four workers on two cores. A worker that has run all its tests takes over tests of another one.
# Tests that wait come first (tests/support/worker_shares.py).
NOT_LOCAL = ("cluster", "vllm", "sglang", "slow_fault")
LOCAL = ("-n", "4", "--dist", "worksteal", "-m", " and ".join(f"not {m}" for m in NOT_LOCAL))
# Each worker brings up a Slurm cluster of its own. These tests mostly wait.
CLUSTER = (
    "-n",
    "3",
    "--dist",
    "load",
    "--maxschedchunk",
    "1",
    "-m",
    "cluster and not vllm and not slow_fault",
)
# One worker runs all tests that share engines, see EngineScheduling.
VLLM = ("-n", "2", "--dist", "loadfile", "-m", "vllm and not slow_fault")
# One process: all files share one pair of engines.
SGLANG = ("-m", "sglang and not slow_fault")


@dataclass(frozen=True)
class Result:
    """Outcome of one part: exit code, duration in seconds, one line for each failed test."""

    part: str
    code: int
    took_s: float
    failures: Sequence[str] = ()

    def __str__(self) -> str:
        verdict = "passed" if self.code == 0 else f"FAILED (exit code {self.code})"
        return f"{self.part:<10} {self.took_s:>6.0f} s  {verdict}"


def announcement() -> str:
    """Return what the suite is going to install on this machine."""
    lines = []
    if reason := not_installable():
        what = f"not installed ({reason}); cluster tests are skipped"
        lines.append(f"Slurm, Open MPI, Charliecloud and Podman: {what}")
    for words in () if reason else missing_packages():
        lines.append(f"apt-get install {' '.join(words)}")
    places = provision.vllm_paths()
    if not places.complete:
        size = f"about {provision.DISK_GB + MODEL_GB:.0f} GB"
        lines.append(f"vLLM {provision.VLLM} and a small model: {size} in {places.cache}")
    if required("sglang") and not provision_sglang.sglang_paths().complete:
        size = f"about {provision_sglang.DISK_GB:.0f} GB"
        lines.append(f"SGLang {provision_sglang.SGLANG}: {size} in {places.cache}")
    return "\n".join(f"will install  {line}" for line in lines) or "nothing to install"


@dataclass
class FailureLines:
    """Lines that name failed tests, from the output of one part."""

    lines: list[str] = field(default_factory=list)
    _in_summary: bool = False

    def read(self, line: str) -> None:
        """Collect a line of pytest's short summary. Its reports and captured logs are ignored."""
        if " short test summary info " in line and line.startswith("="):
            self._in_summary = True
        elif line.startswith("="):
            self._in_summary = False
        elif self._in_summary and line.startswith(("FAILED ", "ERROR ")):
            self.lines.append(line[:FAILURE_CHARS])


def report(results: Sequence[Result]) -> str:
    """Return the table of parts, then the failed tests of all parts."""
    failures = [f"{r.part:<8} | {line}" for r in results for line in r.failures]
    return "\n".join([*map(str, results), *failures])


async def run(part: str, command: Sequence[str]) -> Result:
    """Run a command and prefix its output with `part`."""
    began = time.monotonic()
    print(f"{part:<8} | $ {shlex.join(command)}", flush=True)
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | UNCUT,
        limit=LINE_BYTES,
    )
    assert process.stdout
    failures = FailureLines()
    try:
        async for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            failures.read(text)
            print(f"{part:<8} | {text}", flush=True)
        code = await process.wait()
    finally:
        # Ctrl-C reaches the whole process group: give the child time to clean up.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
    return Result(part, code, time.monotonic() - began, failures.lines)


def files_with(marker: str) -> list[str]:
    """Return the test files that use a marker. The import of all others takes 9 s."""
    files = Path("tests").rglob("test_*.py")
    return sorted(str(file) for file in files if f"pytest.mark.{marker}" in file.read_text())


Part = tuple[str, Sequence[str]]


def lanes() -> list[list[Part]]:
    """Return the parts: those of a lane run one after another, the lanes at the same time."""
    sglang: list[Part] = [
        ("sglang-env", (sys.executable, "-m", "hpc_dynamo.demo.provision_sglang")),
        ("sglang", (*PYTEST, *SGLANG, *files_with("sglang"))),
    ]
    return [
        [("local", (*PYTEST, *LOCAL))],
        [
            ("vllm-env", (sys.executable, "-m", "hpc_dynamo.demo.provision")),
            ("vllm", (*PYTEST, *VLLM, *files_with("vllm"))),
            *(sglang if required("sglang") else ()),
            ("lint", ("make", "--no-print-directory", "lint")),
        ],
        [("cluster", (*PYTEST, *CLUSTER, *files_with("cluster")))],
    ]


async def lane(parts: Sequence[Part]) -> list[Result]:
    """Run the parts of a lane one after another and return their results in order."""
    return [await run(name, command) for name, command in parts]


async def suite() -> list[Result]:
    """Run all parts. A part that cannot run here is skipped by its tests, with the reason."""
    results = []
    if not not_installable():
        prepare = (sys.executable, "-m", "tests.cluster.slurm", "install")
        results.append(await run("prepare", prepare))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(lane(parts)) for parts in lanes()]
    return results + [result for task in tasks for result in task.result()]


def main() -> int:
    print(announcement(), flush=True)
    results = asyncio.run(suite())
    print(report(results))
    # Without root or network the engines cannot be installed; their tests are skipped then.
    return int(any(r.code and (required("vllm") or r.part != "vllm-env") for r in results))


if __name__ == "__main__":
    sys.exit(main())
