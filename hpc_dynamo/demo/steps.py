"""A list of commands that is run once: resumes where it was interrupted, one process at a time.

Every finished step leaves a stamp that holds its own commands and those of all steps before
it: a changed step runs again, and so does everything that builds on it. The lock is a
`flock` on a file that the commands inherit: it is free when the last of them has ended,
however that was, and it needs no clean-up.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpc_dynamo.errors import HpcDynamoError

LINE_S = 15.0  # between two lines in a log
LOOK_S = 0.2  # at a command and its log; a terminal is drawn as often
LINE_WIDTH = 120  # of such a line; pip names a hundred packages in one
GB = 1e9

INDEX = "the package index of your site: PIP_INDEX_URL=…"
KNOWN_FAILURES = {  # the first that is in a log
    "No space left on device": "free some disk space, or HPC_DYNAMO_CACHE=/another/disk",
    "ensurepip is not available": "apt-get install python3-venv",
    "Failed to establish a new connection": f"a network, a proxy (HTTPS_PROXY=…), or {INDEX}",
    "Read timed out": "the same command again: it goes on where it stopped",
    "do not match the hashes": "the same command again with PIP_NO_CACHE_DIR=1",
    "No matching distribution found for torch": "HPC_DYNAMO_TORCH_ARGS='--index-url …' with an "
    "index that has PyTorch's builds for the CPU",
    "No matching distribution found": f"another Python, such as 3.11, or {INDEX}",
}


@dataclass(frozen=True)
class InstallStep:
    """Commands that belong together. Those that were interrupted must bear a second run."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_s: float = 1800.0


class InstallProgress:
    """What the user sees: one live line on a terminal, a plain line now and then in a log."""

    def __init__(self, period_s: float = LINE_S) -> None:
        self._live = sys.stderr.isatty()
        self._period_s = period_s
        self._began = self._spoke = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._spoke = time.monotonic()
        print(f"{self._clear()}{self._stamped(text)}", file=sys.stderr, flush=True)

    def now(self, text: str) -> None:
        """What is going on; may be called at any rate."""
        if self._live:
            shown = self._stamped(text)[: shutil.get_terminal_size().columns - 1]
            print(self._clear() + shown, end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._spoke >= self._period_s:
            self.line(text[:LINE_WIDTH])

    def _stamped(self, text: str) -> str:
        return f"[{time.monotonic() - self._began:4.0f} s] {text}"

    def _clear(self) -> str:
        return "\r\x1b[K" if self._live else ""


def run_steps(steps: Sequence[InstallStep], folder: Path, progress: InstallProgress) -> None:
    """Run the steps that are not done; stamps and logs go to `folder`, which the caller locked.

    Raises HpcDynamoError naming the step, its log and what to try.
    """
    history = hashlib.sha256()
    for number, step in enumerate(steps, 1):
        history.update(_text(step).encode())
        stamp = folder / f"{step.name.replace(' ', '-')}.done"
        if stamp.exists() and stamp.read_text() == history.hexdigest():
            continue
        _run(step, folder, f"{number}/{len(steps)} {step.name}", progress)
        partial = stamp.with_suffix(".partial")
        partial.write_text(history.hexdigest())
        partial.rename(stamp)


def _text(step: InstallStep) -> str:
    """The commands, free of where this checkout and its Python lie: several may share a cache.
    Scripts of ours count with their source."""
    return "\n".join(shlex.join(map(_content, command)) for command in step.commands)


def _content(word: str) -> str:
    if word == sys.executable:
        return "python"
    script = Path(word)
    return script.read_text() if script.parent == Path(__file__).parent else word


def _run(step: InstallStep, folder: Path, title: str, progress: InstallProgress) -> None:
    log, began = folder / f"{step.name.replace(' ', '-')}.log", time.monotonic()
    progress.line(title)
    log.write_text("")
    for command in step.commands:
        code = _watch(command, log, title, progress, began + step.limit_s)
        if code:
            raise _failed(step, log, f"ended with exit code {code}")
    progress.line(f"{title}: done in {time.monotonic() - began:.0f} s")


def _watch(
    command: Sequence[str], log: Path, title: str, progress: InstallProgress, deadline: float
) -> int:
    """The exit code of a command; shows the last line of its output until then."""
    with log.open("a") as out, _child(command, out.fileno(), _environment(log.parent)) as child:
        while True:
            try:
                return child.wait(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                progress.now(f"{title}: {_last_line(log)}".removesuffix(": "))
            if time.monotonic() > deadline:
                raise HpcDynamoError(f"{title} did not end in time", log=log, hint=_advice(log))


@contextmanager
def _child(
    command: Sequence[str], out: int, env: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does not outlive this block. It inherits the lock."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, close_fds=False
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Ours, without what would lead pip or Python out of the environment that is made."""
    # PYTHONDONTWRITEBYTECODE would make every later start compile 10,000 files again.
    unwanted = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PIP_TARGET")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    scratch = folder / "tmp"  # /tmp is often too small for the wheels
    shutil.rmtree(scratch, ignore_errors=True)  # of a command that was killed
    scratch.mkdir()
    return kept | {"TMPDIR": str(scratch), "PIP_USER": "0", "PIP_NO_INPUT": "1"}


def _last_line(log: Path) -> str:
    """Of what is there, without the frames that progress bars draw over each other."""
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(max(0, size - 2000))
        tail = file.read().decode(errors="replace").replace("\r", "\n")
    return next((line.strip() for line in reversed(tail.split("\n")) if line.strip()), "")


def _failed(step: InstallStep, log: Path, what: str) -> HpcDynamoError:
    return HpcDynamoError(f"{step.name} {what}: {_last_line(log)}", log=log, hint=_advice(log))


def _advice(log: Path) -> str:
    said = log.read_text(errors="replace")
    found = (hint for sign, hint in KNOWN_FAILURES.items() if sign in said)
    return next(found, "the log, then the same command again: it goes on at this step")


def require_free_disk(folder: Path, needed_gb: float) -> None:
    """Raises HpcDynamoError where the disk of `folder` has less than that free."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free_gb = shutil.disk_usage(there).free / GB
    if free_gb < needed_gb:
        what = f"{there} has {free_gb:.1f} GB free, the engine needs {needed_gb:.1f} GB"
        raise HpcDynamoError(what, hint="free some space, or HPC_DYNAMO_CACHE=/another/disk")


@contextmanager
def exclusive_lock(
    folder: Path, progress: InstallProgress, timeout_s: float = 3600.0
) -> Iterator[None]:
    """The only process that works in `folder`, its commands included, until the block ends.

    Raises HpcDynamoError where another one does for longer than `timeout_s`.
    """
    file = folder / "lock"
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(handle, True)  # a command that outlives us keeps the lock
    try:
        _lock(handle, file, progress, time.monotonic() + timeout_s)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, file: Path, progress: InstallProgress, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.now("waiting for another process that installs the engine")
        if time.monotonic() > deadline:
            raise HpcDynamoError(f"{file} was not free in time", hint=f"fuser {file}")
        time.sleep(LOOK_S)  # nobody announces the end of a flock
