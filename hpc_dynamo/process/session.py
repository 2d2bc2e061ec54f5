"""Processes of a session, such as an engine with all its workers (proc(5), file stat)."""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

STOPPED = "T"  # by SIGSTOP, SIGTSTP or a similar signal
RUNNABLE = "R"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class SessionUsage(NamedTuple):
    """CPU time that a session has used, and the states of its processes."""

    cpu_s: float
    stopped: bool  # one of its processes is
    runnable: bool = False  # one of its processes runs, or waits for a CPU


NO_PROCESSES = SessionUsage(0.0, stopped=False)


class SessionMonitor:
    """Usage of the sessions of this node. One scan of /proc, in a thread, serves all callers for
    `max_age_s`."""

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._scan: asyncio.Task[dict[int, SessionUsage]] | None = None
        self._scanned_at = 0.0

    async def usage(self, leader: int) -> SessionUsage:
        """Return the usage of the session of process `leader`, ended children included."""
        scan, now = self._scan, time.monotonic()
        if scan is None or (scan.done() and now - self._scanned_at > self._max_age_s):
            scan = self._scan = asyncio.create_task(_scan())
            self._scanned_at = now
        return (await asyncio.shield(scan)).get(leader, NO_PROCESSES)


async def _scan() -> dict[int, SessionUsage]:
    return await asyncio.to_thread(session_usages)


def session_usages() -> dict[int, SessionUsage]:
    """Return the usage of all sessions, by their leader's process id."""
    sessions = defaultdict[int, list[list[str]]](list)
    for fields in _processes():
        sessions[int(fields[3])].append(fields)
    return {leader: _usage(rows) for leader, rows in sessions.items()}


def _usage(rows: list[list[str]]) -> SessionUsage:
    ticks = sum(int(value) for row in rows for value in row[11:15])
    states = {row[0] for row in rows}
    return SessionUsage(ticks / TICKS_PER_S, STOPPED in states, RUNNABLE in states)


def _processes() -> Iterator[list[str]]:
    """Yield the fields of each process, from its state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            yield stat.read_text().rpartition(")")[2].split()
