"""Processes of a session, such as an engine with all its workers, and their descendants.

A container runtime such as Podman starts the engine in a session of its own.

Source: proc(5), file stat; file schedstat of Linux (Documentation/scheduler/sched-stats.rst).
"""

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

STOPPED = "T"  # by SIGSTOP, SIGTSTP or a similar signal
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PARENT, SESSION, STARTED_AT = 1, 3, 19  # fields, from the state on
OWN_TIMES, TIMES_OF_CHILDREN = slice(11, 13), slice(13, 15)
NS_PER_S = 1e9
RETRY_S = 1.0

ProcessRow = tuple[Path, list[str]]  # folder in /proc, and the stat fields from the state on

log = logging.getLogger(__name__)


class ThreadTimes(NamedTuple):
    """Time that a thread ran, and time that it was ready to run but had no CPU."""

    ran_s: float
    waited_s: float


class SessionUsage(NamedTuple):
    """CPU time that a session and its descendants have used, ended children included, and their
    present threads.

    `threads` is empty on a kernel that does not count their times. `at_s` is the clock's time.
    `children_s` is the part of the CPU time that ended children have used.
    """

    cpu_s: float
    stopped: bool  # one of its processes is
    threads: Mapping[int, ThreadTimes] = MappingProxyType({})
    at_s: float = 0.0
    children_s: float = 0.0


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
    """Scan again after a lack of descriptors or memory: it must not end the agent."""
    while True:
        try:
            return await asyncio.to_thread(session_usages, leaders)
        except OSError as e:
            log.warning("/proc cannot be read: %s", e.strerror)
            await asyncio.sleep(RETRY_S)


def session_usages(leaders: Collection[int]) -> dict[int, SessionUsage]:
    """Return the usage of the sessions of these processes that are alive."""
    return {leader: _usage(rows) for leader, rows in members(leaders).items()}


def members(leaders: Collection[int]) -> dict[int, list[ProcessRow]]:
    """Return the processes of each leader: those of its session, and descendants that left it."""
    table = {int(path.name): (path, fields) for path, fields in processes()}
    found = defaultdict[int, list[ProcessRow]](list)
    for pid, row in table.items():
        if (leader := _leader(pid, table, leaders)) is not None:
            found[leader].append(row)
    return found


def _leader(pid: int, table: Mapping[int, ProcessRow], leaders: Collection[int]) -> int | None:
    for _ in table:  # at most one step per process: the table is no snapshot
        if pid not in table:
            return None
        fields = table[pid][1]
        if (session := int(fields[SESSION])) in leaders:
            return session
        pid = int(fields[PARENT])
    return None


def processes() -> Iterator[ProcessRow]:
    """Yield the folder in /proc of each process, and its stat fields from the state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            yield stat.parent, stat.read_text().rpartition(")")[2].split()


def _usage(rows: list[ProcessRow]) -> SessionUsage:
    own, children = (
        sum(int(value) for _, row in rows for value in row[fields]) / TICKS_PER_S
        for fields in (OWN_TIMES, TIMES_OF_CHILDREN)
    )
    stopped = any(row[0] == STOPPED for _, row in rows)
    threads = dict(pair for process, _ in rows for pair in _threads(process))
    return SessionUsage(own + children, stopped, threads, time.monotonic(), children)


def _threads(process: Path) -> Iterator[tuple[int, ThreadTimes]]:
    """Yield the id and the times of each thread of a process."""
    with suppress(OSError):  # the process has ended
        for schedstat in process.glob("task/*/schedstat"):
            with suppress(OSError):  # the thread has ended
                ran_ns, waited_ns, _ = map(int, schedstat.read_text().split())
                times = ThreadTimes(ran_ns / NS_PER_S, waited_ns / NS_PER_S)
                yield int(schedstat.parent.name), times


def wanted_cpus(before: SessionUsage, now: SessionUsage) -> float:
    """Return the CPUs that a session would have used if no other process had used them.

    Threads that wake often wait as long as computing ones on a busy machine. Without others, they
    would mostly sleep. So the time that a thread waited for a CPU is left out.
    """
    elapsed_s = now.at_s - before.at_s
    if elapsed_s <= 0:  # it has ended
        return 0.0
    used = (now.cpu_s - before.cpu_s) / elapsed_s
    shares = (
        _share(before.threads[tid], times, elapsed_s)
        if tid in before.threads
        else min(1.0, sum(times) / elapsed_s)  # it is younger, and slept little
        for tid, times in now.threads.items()
    )
    return max(used, sum(shares))


def _share(before: ThreadTimes, now: ThreadTimes, elapsed_s: float) -> float:
    ran_s, waited_s = now.ran_s - before.ran_s, now.waited_s - before.waited_s
    slept_s = max(0.0, elapsed_s - ran_s - waited_s)
    return ran_s / (ran_s + slept_s) if ran_s else 0.0
