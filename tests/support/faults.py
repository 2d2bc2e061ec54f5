"""Processes of a run, to stop or kill one of them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit


def engines(attempt: Path, port: int | None = None) -> list[int]:
    """Return the processes of simulators of an attempt, or of the one on this port."""
    return _simulators(attempt, port, supervisors=False)


def supervisors(attempt: Path, port: int | None = None) -> list[int]:
    """Return the supervisors of simulators of an attempt, or of the one on this port."""
    return _simulators(attempt, port, supervisors=True)


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def _simulators(attempt: Path, port: int | None, *, supervisors: bool) -> list[int]:
    found = []
    for pid, words in _commands():
        of_attempt = any(_runs(parent, attempt) for parent in _ancestors(pid))
        supervised = any(word.endswith("supervisor.py") for word in words)
        named = "hpc_dynamo.simulator" in words and (port is None or str(port) in words)
        if of_attempt and named and supervised is supervisors:
            found.append(pid)
    return found


def _commands() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), _words(int(folder.name))


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")


def _runs(pid: int, attempt: Path) -> bool:
    with suppress(OSError):
        return any(str(attempt) in word for word in _words(pid))
    return False


def _ancestors(pid: int) -> Iterator[int]:
    with suppress(OSError):
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            yield pid


def ended(pid: int) -> bool:
    """Return True if a process has ended, also if its parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process while the context is open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
