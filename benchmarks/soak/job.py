"""Serving job under test, observed from outside."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.common.processes import ProcessExited, cores_busy_s, cpu_s, with_descendants
from benchmarks.common.serving import ServingJob, serving
from benchmarks.common.workload import MODEL
from benchmarks.soak.checks import KEPT_CONNECTIONS, nonzero_gauges
from benchmarks.soak.results import ProcessUsage
from hpc_dynamo.http import HttpClient

LOOK_S = 60.0  # also while a fault lasts
RETRY_S = 0.5
LAG_S = 4.5  # delay of the engines' metrics on the job's page
# Servers close connections that are idle for 75 s, engines free unclaimed blocks after 120 s.
IDLE_S = 150.0
NAME = "soak"
WORDS = (
    *("engine=simulator", "topology=disaggregated", "engine.args.timing=instant"),
    f"model.name={MODEL}",
    "router.index_capacity_blocks=20000",  # full before growth is measured
)
NUMBER = re.compile(r'^hpc_dynamo_(\w+?)(?:\{.*(?:role|process)="(\w+)".*\})? ([\d.e+-]+)$', re.M)
TRAFFIC = (
    "requests_running", "requests_waiting", "open_connections", "requests_cancelled_total",
    "request_retries_total", "requests_rejected_total", "asyncio_tasks",
)  # fmt: skip
WORKER = tuple(
    f"worker_{name}"
    for name in ("requests_active", "requests_running", "requests_waiting", "kv_cache_usage_ratio")
)


class SoakJob:
    """Serving job with its metrics and processes."""

    def __init__(self, job: ServingJob, key: str, looking: HttpClient) -> None:
        self._pid, self.url, self.key, self._looking = job.pid, job.url, key, looking
        self.attempt = job.run.attempts()[-1]

    async def gauges(self) -> dict[str, float]:
        """Return the gauges of the job, without the connection of this call.

        Raises ProcessExited if the job does not answer within LOOK_S.
        """
        try:
            async with asyncio.timeout(LOOK_S):
                while (rows := await self._page()) is None:  # noqa: ASYNC110  # another process
                    await asyncio.sleep(RETRY_S)
        except TimeoutError as e:
            raise ProcessExited(f"no metrics of the job within {LOOK_S:.0f} s") from e
        found = {f"{role} {name}".strip(): float(value) for name, role, value in rows}
        own = {name: v for name, v in found.items() if name.split()[-1] in TRAFFIC + WORKER}
        return own | {"open_connections": max(0.0, own.get("open_connections", 0.0) - 1)}

    async def _page(self) -> list[tuple[str, str, str]] | None:
        """Return the numbers of the metrics, or None if the frontend is restarting."""
        try:
            async with self._looking.send("GET", self.url, "/metrics") as answer:
                return NUMBER.findall((await answer.read()).decode())
        except OSError:
            return None

    def run_folder_mib(self) -> float:
        """Return the size of all files of the run."""
        files = self.attempt.run.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file()) / 2**20

    def processes(self) -> dict[str, ProcessUsage]:
        """Return the processes by function; one that just exits is omitted."""
        found = dict[str, ProcessUsage]()
        for pid in sorted(with_descendants([self._pid])):
            with suppress(OSError, KeyError):  # a zombie has no memory
                if name := _name(pid):
                    others = sum(each.startswith(name) for each in found)
                    found[f"{name} {others + 1}" if others else name] = _process(pid)
        return found

    def other_programs_s(self) -> float:
        """Return CPU seconds since boot that neither the job nor this program used."""
        return cores_busy_s() - cpu_s([self._pid]) - time.process_time()

    async def wait_until_idle(
        self, start: dict[str, ProcessUsage]
    ) -> tuple[dict[str, float], dict[str, ProcessUsage]]:
        """Return gauges and processes once the job is idle, or after IDLE_S."""
        deadline = time.monotonic() + IDLE_S
        await asyncio.sleep(LAG_S)
        while True:
            gauges, now = await self.gauges(), self.processes()
            over = not nonzero_gauges(gauges) and all(
                n in now and now[n].fds <= p.fds + KEPT_CONNECTIONS for n, p in start.items()
            )
            if over or time.monotonic() > deadline:
                return gauges, now
            await asyncio.sleep(1)  # polls metrics and /proc


def _name(pid: int) -> str:
    """Return the function of a process; empty for supervisors."""
    match Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
        case [_, "-m", "hpc_dynamo.frontend", _, index, *_]:
            return f"frontend {index}"
        case [_, "-m", "hpc_dynamo.simulator", *rest]:
            return rest[rest.index("--role") + 1]
        case [_, "-u", "-m", "hpc_dynamo.launch.submitit_task", *_]:
            return "head"
    return ""


def _process(pid: int) -> ProcessUsage:
    proc = Path(f"/proc/{pid}")
    rows = (proc / "status").read_text() + (proc / "smaps_rollup").read_text()
    value = {k: int(n) for k, n in re.findall(r"^(VmRSS|Pss|Threads):\s+(\d+)", rows, re.M)}
    fds = len(list((proc / "fd").iterdir()))
    return ProcessUsage(pid, value["VmRSS"] / 1024, value["Pss"] / 1024, fds, value["Threads"])


@asynccontextmanager
async def start(folder: Path, model: Path, words: Sequence[str]) -> AsyncIterator[SoakJob]:
    """Yield a job that serves; see benchmarks.common.serving."""
    async with serving(folder, NAME, model, (*WORDS, *words)) as served:
        key = served.run.api_key()
        async with HttpClient.bearer(key) as looking:
            yield SoakJob(served, key, looking)
