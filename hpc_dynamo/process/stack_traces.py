"""Stack traces of an engine that hangs: Python writes those of all threads at SIGABRT."""

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

from hpc_dynamo.process.session import STARTED_AT, members

ENVIRONMENT = {"PYTHONFAULTHANDLER": "1"}  # see the documentation of Python's faulthandler
PATIENCE_S = 1.0  # per process; one that is stopped by a signal writes nothing


def abort_session(leader: int) -> None:
    """End the processes of a leader by SIGABRT, the youngest first, but not the leader.

    Those that were started with ENVIRONMENT write stack traces to their standard error. None
    writes a core dump. Blocks for PATIENCE_S per process that does not end.
    """
    for pid in _members(leader):
        with suppress(OSError):  # it has ended
            Path(f"/proc/{pid}/coredump_filter").write_text("0")
            descriptor = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGABRT)
                select.select([descriptor], [], [], PATIENCE_S)
            finally:
                os.close(descriptor)


def _members(leader: int) -> list[int]:
    """Return the process ids of a leader without itself, the youngest first (proc(5))."""
    rows = members([leader]).get(leader, [])
    found = [(int(fields[STARTED_AT]), int(process.name)) for process, fields in rows]
    return [pid for _, pid in sorted(found, reverse=True) if pid != leader]
