"""Processes of a session, such as an engine with all its workers.

Source: proc(5), file stat; file schedstat of Linux (Documentation/scheduler/sched-stats.rst).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

STOPPED = "T"  # by SIGSTOP, SIGTSTP or a similar signal
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
NS_PER_S = 1e9


class ThreadTimes(NamedTuple):
    """Time that a thread ran, and time that it was ready to run but had no CPU."""

    ran_s: float
    waited_s: float


class SessionUsage(NamedTuple):
    """CPU time that a session has used, ended children included, and its present threads.

    `threads` is empty on a kernel that does not count their times.
    """

    cpu_s: float
    stopped: bool  # one of its processes is
    threads: Mapping[int, ThreadTimes] = MappingProxyType({})


def session_usage(leader: int) -> SessionUsage:
    """Return the usage of the session of process `leader`."""
    rows = list(_processes(leader))
    ticks = sum(int(value) for _, row in rows for value in row[11:15])
    stopped = any(row[0] == STOPPED for _, row in rows)
    threads = dict(pair for process, _ in rows for pair in _threads(process))
    return SessionUsage(ticks / TICKS_PER_S, stopped, threads)


def wanted_cpus(before: SessionUsage, now: SessionUsage, elapsed_s: float) -> float:
    """Return the CPUs that the session would have used if no other process had used them.

    Threads that wake often wait as long as computing ones on a busy machine. Without others, they
    would mostly sleep. So the time that a thread waited for a CPU is left out.
    """
    used = (now.cpu_s - before.cpu_s) / elapsed_s
    both = now.threads.keys() & before.threads.keys()
    shares = (_share(before.threads[tid], now.threads[tid], elapsed_s) for tid in both)
    return max(used, sum(shares))


def _share(before: ThreadTimes, now: ThreadTimes, elapsed_s: float) -> float:
    ran_s, waited_s = now.ran_s - before.ran_s, now.waited_s - before.waited_s
    slept_s = max(0.0, elapsed_s - ran_s - waited_s)
    return ran_s / (ran_s + slept_s) if ran_s else 0.0


def _processes(leader: int) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder of each process of the session, and its fields from its state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                yield stat.parent, fields


def _threads(process: Path) -> Iterator[tuple[int, ThreadTimes]]:
    """Yield the id and the times of each thread of a process."""
    with suppress(OSError):  # the process has ended
        for schedstat in process.glob("task/*/schedstat"):
            with suppress(OSError):  # the thread has ended
                ran_ns, waited_ns, _ = map(int, schedstat.read_text().split())
                times = ThreadTimes(ran_ns / NS_PER_S, waited_ns / NS_PER_S)
                yield int(schedstat.parent.name), times
