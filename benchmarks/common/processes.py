"""Start, stop and measure the processes of a target."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpc_dynamo.errors import EngineError

GRACE_S = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that is free now; another program may take it before the caller."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class ProcessExited(EngineError):
    """A process of a target exited, perhaps because its port was taken."""


class ProcessGroup:
    """Commands in separate sessions, each with a log in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] = {}) -> int:
        """Run a command; return the pid of its first process."""
        with self.log(name).open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self._running[name] = process
        return process.pid

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def check(self) -> None:
        """Raises ProcessExited with the log of a command that has exited."""
        for name, process in self._running.items():
            if process.returncode is not None:
                tail = self.log(name).read_text(errors="replace").strip()[-800:]
                what = f"{name} ended with exit code {process.returncode}: {tail}"
                raise ProcessExited(what, log=self.log(name))

    async def stop(self) -> None:
        """End every command and its children, the last one first."""
        while self._running:
            _, process = self._running.popitem()
            _signal(process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await process.wait()
            _signal(process.pid, signal.SIGKILL)  # also its remaining children
            await process.wait()


def _signal(leader: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def with_descendants(pids: Sequence[int]) -> set[int]:
    """Return `pids` and all their descendants (proc(5), stat field 4)."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stats():
        children.setdefault(int(fields[1]), []).append(pid)
    found, left = set[int](), list(pids)
    while left:
        pid = left.pop()
        found.add(pid)
        left += children.get(pid, [])
    return found


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Yield pid and the stat fields after the command's name for all processes."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            yield int(stat.parent.name), stat.read_text().rpartition(")")[2].split()


def cpu_s(pids: Sequence[int]) -> float:
    """Return CPU seconds of these processes and their descendants, including reaped ones."""
    members = with_descendants(pids)
    ticks = (sum(map(int, fields[11:15])) for pid, fields in _stats() if pid in members)
    return sum(ticks) / TICKS


def cores_busy_s() -> float:
    """Return the busy seconds of this process's cores since boot (proc(5), stat)."""
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    # user nice system idle iowait irq softirq steal
    return sum(sum(map(int, (*r[1:4], *r[6:9]))) for r in rows if r[0] in ours) / TICKS


def memory_mib(pids: Sequence[int]) -> float:
    """Return the memory of these processes and their descendants as proportional set size."""
    return sum(map(_pss_kib, with_descendants(pids))) / 1024


def _pss_kib(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0
