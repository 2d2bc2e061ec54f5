"""Processes of a session, such as an engine with all its workers (proc(5), file stat)."""

import os
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


def session_usage(leader: int) -> SessionUsage:
    """Return the usage of the session of process `leader`, ended children included."""
    rows = list(_processes(leader))
    ticks = sum(int(value) for row in rows for value in row[11:15])
    states = {row[0] for row in rows}
    return SessionUsage(ticks / TICKS_PER_S, STOPPED in states, RUNNABLE in states)


def _processes(leader: int) -> Iterator[list[str]]:
    """Yield the fields of each process of the session, from its state on."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                yield fields
