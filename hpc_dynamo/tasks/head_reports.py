"""Pipe on which the head reports to the task of node 0 that it makes progress, and its outcome.

The head writes an empty line every second. When the job ends it writes its outcome, one line of
JSON, and again when all agents have stopped.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import msgspec

from hpc_dynamo.config import Cluster
from hpc_dynamo.messages import Outcome
from hpc_dynamo.wire.silence import SilenceWatch

INTERVAL_S = 1.0
PIPE_BYTES = 1 << 16
HEAD = "head"


class HeadReports:
    """Receiving end of the pipe of one head. A context manager that closes it.

    A head hangs if it is silent for `cluster.heartbeat_timeout_s`. It may start for as long as an
    agent may (`cluster.bootstrap.timeout_s`). The head gets the descriptor `write_end`, which the
    caller closes.
    """

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = cluster.heartbeat_timeout_s
        self._start_timeout_s = max(self._timeout_s, cluster.bootstrap.timeout_s)
        self._read, self.write_end = os.pipe()
        os.set_blocking(self._read, False)
        self._started, self._data = False, b""
        self._silence = SilenceWatch[str](clock)
        self._silence.heard(HEAD)

    def __enter__(self) -> "HeadReports":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._read)

    async def wait_for_hang(self) -> str:
        """Wait until the head hangs; return the reason."""
        while True:
            if reason := self.check():
                return reason
            await asyncio.sleep(INTERVAL_S)

    def check(self) -> str:
        """Return the reason if the head hangs. Call it every second: after a longer gap this
        process was suspended, probably with the head, which gets the full time again."""
        self._receive()
        silent_s = self._silence.check()[HEAD]
        hangs = silent_s > (self._timeout_s if self._started else self._start_timeout_s)
        return f"no progress for {silent_s:.0f} s" if hangs else ""

    def outcome(self) -> Outcome | None:
        """Return the last reported outcome; None if the head has died before."""
        self._receive()
        complete = self._data.rpartition(b"\n")[0]
        lines = [line for line in complete.splitlines() if line]
        return msgspec.json.decode(lines[-1], type=Outcome) if lines else None

    def _receive(self) -> None:
        with suppress(BlockingIOError):  # nothing more has been written
            while data := os.read(self._read, PIPE_BYTES):
                self._data = (self._data + data).lstrip(b"\n")
                self._started = True
                self._silence.heard(HEAD)


def report_progress(fd: int) -> None:
    _write(fd, b"")


def report_outcome(fd: int, outcome: Outcome) -> None:
    _write(fd, msgspec.json.encode(outcome))


def _write(fd: int, line: bytes) -> None:
    with suppress(BrokenPipeError):  # the task has died; the head stops the other agents
        os.write(fd, line + b"\n")
