"""Installation steps that run once, in one process at a time, and can be resumed.

Each finished step leaves a stamp with a hash of its commands and those of all earlier steps. A
changed step therefore runs again, with all later steps. The lock is a `flock` on a file that the
commands inherit. It is released when the last of them ends, even after a crash.
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

LINE_INTERVAL_S = 15.0  # between two lines in a log
POLL_S = 0.2  # between two updates of a terminal
LINE_WIDTH = 120  # pip names a hundred packages in one line
GB = 1e9

INDEX = "the package index of your site (PIP_INDEX_URL=…)"
KNOWN_FAILURES = {  # hints by text in the log; the first match counts
    "No space left on device": "free some disk space, or HPC_DYNAMO_CACHE=/another/disk",
    "ensurepip is not available": "apt-get install python3-venv",
    "Failed to establish a new connection": f"a network, a proxy (HTTPS_PROXY=…), or {INDEX}",
    "Read timed out": "run the same command again to resume",
    "do not match the hashes": "run the same command again with PIP_NO_CACHE_DIR=1",
    "No matching distribution found for torch": "HPC_DYNAMO_TORCH_ARGS='--index-url …' with an "
    "index that has PyTorch's builds for the CPU",
    "No matching distribution found for sglang": "a system with glibc 2.34 or newer, Python 3.11 "
    f"or newer, or {INDEX}",
    "No matching distribution found": f"another Python, such as 3.11, or {INDEX}",
}


@dataclass(frozen=True)
class InstallStep:
    """Commands of one step. It must be possible to repeat them after an interruption."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_s: float = 1800.0


class InstallProgress:
    """Progress for the user: a live line on a terminal, a line at intervals in a log."""

    def __init__(self, period_s: float = LINE_INTERVAL_S) -> None:
        self._live = sys.stderr.isatty()
        self._period_s = period_s
        self._began = self._printed_at = time.monotonic()

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self._printed_at = time.monotonic()
        print(f"{self._clear()}{self._stamped(text)}", file=sys.stderr, flush=True)

    def update(self, text: str) -> None:
        """Show the current state. May be called at any rate."""
        if self._live:
            shown = self._stamped(text)[: shutil.get_terminal_size().columns - 1]
            print(self._clear() + shown, end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._printed_at >= self._period_s:
            self.line(text[:LINE_WIDTH])

    def _stamped(self, text: str) -> str:
        return f"[{time.monotonic() - self._began:4.0f} s] {text}"

    def _clear(self) -> str:
        return "\r\x1b[K" if self._live else ""


def run_steps(steps: Sequence[InstallStep], folder: Path, progress: InstallProgress) -> None:
    """Run the steps that are not done. Stamps and logs go to `folder`, which must be locked.

    Raises HpcDynamoError with the step, its log and a hint.
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
    """Return the commands without the paths of this checkout, so that checkouts share a cache.

    Scripts of this package are replaced by their source.
    """
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
    """Run a command and show the last line of its output. Return its exit code."""
    with log.open("a") as out, _child(command, out.fileno(), _environment(log.parent)) as child:
        while True:
            try:
                return child.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                progress.update(f"{title}: {_last_line(log)}".removesuffix(": "))
            if time.monotonic() > deadline:
                raise HpcDynamoError(f"{title} did not end in time", log=log, hint=_advice(log))


@contextmanager
def _child(
    command: Sequence[str], out: int, env: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that inherits the lock and ends with the block."""
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
    """Return the environment without variables that redirect pip or Python."""
    # With PYTHONDONTWRITEBYTECODE each later start would compile 10,000 files.
    unwanted = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PIP_TARGET")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    scratch = folder / "tmp"  # /tmp is often too small for the wheels
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed command
    scratch.mkdir()
    return kept | {"TMPDIR": str(scratch), "PIP_USER": "0", "PIP_NO_INPUT": "1"}


def _last_line(log: Path) -> str:
    """Return the last line of the log, without overwritten frames of progress bars."""
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(max(0, size - 2000))
        tail = file.read().decode(errors="replace").replace("\r", "\n")
    return next((line.strip() for line in reversed(tail.split("\n")) if line.strip()), "")


def _failed(step: InstallStep, log: Path, what: str) -> HpcDynamoError:
    return HpcDynamoError(f"{step.name} {what}: {_last_line(log)}", log=log, hint=_advice(log))


def _advice(log: Path) -> str:
    text = log.read_text(errors="replace")
    found = (hint for sign, hint in KNOWN_FAILURES.items() if sign in text)
    return next(found, "read the log, then run the same command again: it resumes at this step")


def require_free_disk(folder: Path, needed_gb: float) -> None:
    """Raise HpcDynamoError if the disk of `folder` has less free space."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free_gb = shutil.disk_usage(existing).free / GB
    if free_gb < needed_gb:
        what = f"{existing} has {free_gb:.1f} GB free, the engine needs {needed_gb:.1f} GB"
        raise HpcDynamoError(what, hint="free some space, or HPC_DYNAMO_CACHE=/another/disk")


@contextmanager
def exclusive_lock(
    folder: Path, progress: InstallProgress, timeout_s: float = 3600.0
) -> Iterator[None]:
    """Lock `folder` against other processes and their commands until the block ends.

    Raises HpcDynamoError if another process holds the lock for more than `timeout_s`.
    """
    file = folder / "lock"
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(handle, True)  # a command that runs longer keeps the lock
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
            progress.update("waiting for another process that installs the engine")
        if time.monotonic() > deadline:
            raise HpcDynamoError(f"{file} was not free in time", hint=f"fuser {file}")
        time.sleep(POLL_S)  # flock has no notification
