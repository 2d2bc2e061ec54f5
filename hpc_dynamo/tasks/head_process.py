"""The head as a child process of the task of node 0, which restarts it if it dies or hangs.

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
from contextlib import suppress

from hpc_dynamo.backoff import RestartLimit
from hpc_dynamo.engines.root_cause import root_cause
from hpc_dynamo.messages import Outcome
from hpc_dynamo.process.child import SAFE_PATH, Child
from hpc_dynamo.process.supervisor import KEEP_HELPERS
from hpc_dynamo.run import Attempt
from hpc_dynamo.tasks.head_reports import HeadReports

MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0
STOP_MARGIN_S = 60.0  # to stop all agents, in addition to engine.stop_timeout_s
STOPPED = Outcome(exit_code=1, message="stopped while the head was down", stopped=True)

log = logging.getLogger(__name__)


class HeadProcess:
    """Runs heads of an attempt, one after the other, until one has an outcome.

    `listening` is the socket of the control plane, `endpoint` one for the port of an endpoint. All
    heads get them. `on_start` is called after each start.
    """

    def __init__(
        self,
        attempt: Attempt,
        listening: socket.socket,
        endpoint: socket.socket,
        on_start: Callable[[], Awaitable[None]],
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        self._attempt, self._on_start = attempt, on_start
        self._sockets = listening.fileno(), endpoint.fileno()
        self._max_restarts = max_restarts
        config, self._log_file = attempt.config(), attempt.agent_log(0)
        self._cluster = config.cluster
        stop_timeout_s = max(each.engine.stop_timeout_s for each in config.by_model.values())
        self._grace_s = stop_timeout_s + STOP_MARGIN_S
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the job now, for a signal."""
        self._stopping.set()

    async def run(self) -> Outcome:
        """Return the outcome of the job, also if no head survives."""
        limit = RestartLimit(self._max_restarts, RESTART_WINDOW_S)
        while True:
            log_size = self._log_file.stat().st_size
            with HeadReports(self._cluster) as reports:
                code = await self._run_once(reports)
                if outcome := reports.outcome():
                    return outcome
            end = self._describe_end(code, log_size)
            limit.succeeded()
            left = limit.failed(time.monotonic())
            log.error("the head died: %s; engines continue; %d restarts left", end, left)
            if not left:
                return self._crash_loop(end)
            if await self._is_stopped_within(limit.delay_s):
                return STOPPED

    def _crash_loop(self, end: str) -> Outcome:
        minutes = RESTART_WINDOW_S / 60
        what = f"the head died {self._max_restarts + 1} times within {minutes:.0f} min: {end}"
        return Outcome(exit_code=1, message=f"{what}\n  log: {self._log_file}")

    async def _is_stopped_within(self, delay_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                return await self._stopping.wait()
        return False

    async def _run_once(self, reports: HeadReports) -> int:
        """Run one head until it ends. Returns its exit code."""
        child = await self._start(reports.write_end)
        exited = asyncio.create_task(self._wait_for_exit(child))
        hung = asyncio.create_task(reports.wait_for_hang())
        try:
            await self._on_start()
            await asyncio.wait({exited, hung}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return exited.result()
            log.error("the head hangs: %s; killing it", hung.result())
            return await child.kill()
        finally:
            hung.cancel()
            exited.cancel()
            await child.stop()

    async def _start(self, write: int) -> Child:
        """Start a head and close `write`, which it inherits."""
        descriptors = (*self._sockets, write)
        words = (str(self._attempt.path), *map(str, descriptors))
        argv = (sys.executable, "-m", "hpc_dynamo.tasks.head", *words)
        # The head submits extra jobs, so it needs Slurm's variables.
        environment = SAFE_PATH | dict(os.environ)
        try:
            return await Child.start(
                argv,
                environment,
                self._log_file,
                self._grace_s,
                pass_fds=descriptors,
                # Jobs that it submits on this machine continue without it.
                helpers=KEEP_HELPERS,
            )
        finally:
            os.close(write)

    async def _wait_for_exit(self, child: Child) -> int:
        """Wait until the head has exited; stop it if the job is stopped."""
        exited = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return exited.result() if exited.done() else await child.stop()
        finally:
            exited.cancel()
            stopping.cancel()

    def _describe_end(self, code: int, log_size: int) -> str:
        """Return the cause of a head's end, from its exit code or its part of the log."""
        if code > 128:
            return f"killed by signal {code - 128}"
        with self._log_file.open("rb") as stream:
            stream.seek(log_size)
            words = root_cause(stream.read().decode(errors="replace"))
        return f"exit code {code}: {words}"
