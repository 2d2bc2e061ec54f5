"""Processes of a session, such as an engine with all its workers.

Source: proc(5), file stat; file schedstat of Linux (Documentation/scheduler/sched-stats.rst).
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

STOPPED = "T"  # by SIGSTOP, SIGTSTP or a similar signal
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
NS_PER_S = 1e9


class SessionUsage(NamedTuple):
    """CPU time that a session has used, and the states of its processes."""

    cpu_s: float
    stopped: bool  # one of its processes is
    waited_s: float = 0.0  # time that its threads were ready to run and had no CPU


def session_usage(leader: int) -> SessionUsage:
    """Return the usage of the session of process `leader`.

    CPU time includes ended children. Waiting time does not include ended threads, so it may shrink.
    """
    rows = list(_processes(leader))
    ticks = sum(int(value) for _, row in rows for value in row[11:15])
    stopped = any(row[0] == STOPPED for _, row in rows)
    return SessionUsage(ticks / TICKS_PER_S, stopped, sum(_waited_s(pid) for pid, _ in rows))


def _processes(leader: int) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder of each process of the session, and its fields from its state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                yield stat.parent, fields


def _waited_s(process: Path) -> float:
    """Return the time in the run queue, of all threads; 0 on a kernel that does not count it."""
    waited_ns = 0
    with suppress(OSError):  # the process has ended
        for schedstat in process.glob("task/*/schedstat"):
            with suppress(OSError):  # the thread has ended
                waited_ns += int(schedstat.read_text().split()[1])
    return waited_ns / NS_PER_S
