"""Processes of a session, such as an engine with all its workers.

Source: proc(5), file stat; file schedstat of Linux (Documentation/scheduler/sched-stats.rst).
"""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Collection
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


NO_PROCESSES = SessionUsage(0.0, stopped=False)


class SessionMonitor:
    """Usage of the sessions of this node's engines. One scan of /proc, in a thread, serves all
    callers for `max_age_s`."""

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s, self._leaders = max_age_s, set[int]()
        self._scan: asyncio.Task[dict[int, SessionUsage]] | None = None
        self._scanned_at = 0.0

    async def usage(self, leader: int) -> SessionUsage:
        """Return the usage of the session of process `leader`."""
        scan, now = self._scan, time.monotonic()
        old = scan is None or (scan.done() and now - self._scanned_at > self._max_age_s)
        if scan is None or old or leader not in self._leaders:
            self._leaders.add(leader)
            scan = self._scan = asyncio.create_task(_scan(frozenset(self._leaders)))
            self._scanned_at = now
        return (await asyncio.shield(scan)).get(leader, NO_PROCESSES)


async def _scan(leaders: frozenset[int]) -> dict[int, SessionUsage]:
    return await asyncio.to_thread(session_usages, leaders)


def session_usages(leaders: Collection[int]) -> dict[int, SessionUsage]:
    """Return the usage of the sessions of these processes that are alive.

    CPU time includes ended children. Waiting time does not include ended threads, so it may shrink.
    """
    sessions = defaultdict[int, list[tuple[Path, list[str]]]](list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()  # from the state on
            if int(fields[3]) in leaders:
                sessions[int(fields[3])].append((stat.parent, fields))
    return {leader: _usage(rows) for leader, rows in sessions.items()}


def _usage(rows: list[tuple[Path, list[str]]]) -> SessionUsage:
    ticks = sum(int(value) for _, row in rows for value in row[11:15])
    stopped = any(row[0] == STOPPED for _, row in rows)
    return SessionUsage(ticks / TICKS_PER_S, stopped, sum(_waited_s(pid) for pid, _ in rows))


def _waited_s(process: Path) -> float:
    """Return the time in the run queue, of all threads; 0 on a kernel that does not count it."""
    waited_ns = 0
    with suppress(OSError):  # the process has ended
        for schedstat in process.glob("task/*/schedstat"):
            with suppress(OSError):  # the thread has ended
                waited_ns += int(schedstat.read_text().split()[1])
    return waited_ns / NS_PER_S
