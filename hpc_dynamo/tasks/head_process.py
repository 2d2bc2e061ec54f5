"""The head as a child process of the task of node 0, which restarts it if it dies.

Agents keep their engines meanwhile. They introduce themselves to the new head with the state of
their workers.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec

from hpc_dynamo.backoff import RestartLimit
from hpc_dynamo.messages import Outcome
from hpc_dynamo.process.child import SAFE_PATH, Child
from hpc_dynamo.run import Attempt

MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0
STOP_MARGIN_S = 60.0  # to stop all agents, in addition to engine.stop_timeout_s
PIPE_BYTES = 1 << 16
STOPPED = Outcome(exit_code=1, message="stopped while the head was down")

log = logging.getLogger(__name__)


class HeadProcess:
    """Runs heads of an attempt, one after the other, until one has an outcome.

    `listening` is the socket of the control plane. `on_start` is called after each start.
    """

    def __init__(
        self, attempt: Attempt, listening: socket.socket, on_start: Callable[[], Awaitable[None]]
    ) -> None:
        self._attempt, self._listening, self._on_start = attempt, listening, on_start
        engines = [config.engine for config in attempt.config().by_model.values()]
        self._grace_s = max(engine.stop_timeout_s for engine in engines) + STOP_MARGIN_S
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the job now, for a signal."""
        self._stopping.set()

    async def run(self) -> Outcome:
        """Return the outcome of the job, also if no head survives."""
        limit, left = RestartLimit(MAX_RESTARTS, RESTART_WINDOW_S), 1
        while left:
            if outcome := await self._run_once():
                return outcome
            if self._stopping.is_set():
                return STOPPED
            limit.succeeded()
            left = limit.failed(time.monotonic())
            log.error("the head died; its agents keep the engines; %d restarts left", left)
            if left:
                await asyncio.sleep(limit.delay_s)
        minutes = RESTART_WINDOW_S / 60
        what = f"the head died {MAX_RESTARTS + 1} times within {minutes:.0f} min"
        return Outcome(exit_code=1, message=f"{what}\n  log: {self._attempt.agent_log(0)}")

    async def _run_once(self) -> Outcome | None:
        """Run one head; return its outcome, or None if it died before it had one."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            try:
                child = await self._start(write)
            finally:
                os.close(write)
            await self._on_start()
            await self._wait_for_end(child)
            return _last_outcome(read)
        finally:
            os.close(read)

    async def _start(self, write: int) -> Child:
        control, path = self._listening.fileno(), str(self._attempt.path)
        arguments = (path, str(control), str(write))
        argv = (sys.executable, "-m", "hpc_dynamo.tasks.head", *arguments)
        # The head submits extra jobs, so it needs Slurm's variables.
        environment, log_file = SAFE_PATH | dict(os.environ), self._attempt.agent_log(0)
        return await Child.start(argv, environment, log_file, self._grace_s, (control, write))

    async def _wait_for_end(self, child: Child) -> None:
        """Wait until the head has exited; stop it if the job is stopped."""
        exited = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await child.stop()
            exited.cancel()


def _last_outcome(read: int) -> Outcome | None:
    try:
        lines = os.read(read, PIPE_BYTES).splitlines()
    except BlockingIOError:  # another process has inherited the pipe
        return None
    return msgspec.json.decode(lines[-1], type=Outcome) if lines else None
