"""A frontend process: started, watched and restarted."""

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

from hpc_dynamo.backoff import RestartLimit
from hpc_dynamo.engines.root_cause import root_cause
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.workloads.endpoint_socket import EndpointSocket
from hpc_dynamo.head.workloads.frontends import FrontendTotals
from hpc_dynamo.process.child import Child, clean_environment
from hpc_dynamo.run import Attempt

STOP_TIMEOUT_S = 5.0  # for a frontend process to end its streams
MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0  # limit for one frontend process
CORES_PER_FRONTEND = 8
MAX_DEFAULT_FRONTENDS = 4

log = logging.getLogger(__name__)


class FrontendProcess:
    """Process number `index` of an endpoint. It hangs if it is silent for `silence_s`."""

    def __init__(
        self,
        attempt: Attempt,
        index: int,
        router_socket: Path,
        port: EndpointSocket,
        reports: FrontendTotals,
        silence_s: float,
    ) -> None:
        self._index, self._port, self._log_file = index, port, attempt.frontend_log(index)
        arguments = (str(attempt.path), str(index), str(router_socket))
        self._argv = (sys.executable, "-m", "hpc_dynamo.frontend", *arguments)
        self._reports, self._silence_s = reports, silence_s

    async def keep_running(self) -> None:
        """Run the process; restart it when it exits. Raises EngineError at the limit."""
        limit, left = RestartLimit(MAX_RESTARTS, RESTART_WINDOW_S), 1
        while left:
            code = await self._run()
            limit.succeeded()
            left = limit.failed(time.monotonic())
            log.error("frontend %d ended with code %d; %d restarts left", self._index, code, left)
            if left:
                await asyncio.sleep(limit.delay_s)
        cause = root_cause(self._log_file.read_text(errors="replace"))
        minutes = RESTART_WINDOW_S / 60
        what = (
            f"frontend {self._index} ended {MAX_RESTARTS + 1} times in {minutes:.0f} min: {cause}"
        )
        raise EngineError(what, log=self._log_file)

    async def _run(self) -> int:
        """Run the process once and return its exit code."""
        with self._port.open() as listening:
            handle = listening.fileno()
            command, environment = (*self._argv, str(handle)), clean_environment({})
            child = await Child.start(
                command, environment, self._log_file, STOP_TIMEOUT_S, (handle,)
            )
        try:
            return await self._wait_for_exit(child)
        finally:
            await child.stop()

    async def _wait_for_exit(self, child: Child) -> int:
        """Return the exit code; kill a process that hangs."""
        exited = asyncio.create_task(child.wait())
        silent = asyncio.create_task(self._reports.wait_until_silent(self._index, self._silence_s))
        try:
            await asyncio.wait({exited, silent}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                what = "frontend %d hangs: silent for %.0f s; killing it"
                log.error(what, self._index, self._silence_s)
                await child.kill()
            return await exited
        finally:
            exited.cancel()
            silent.cancel()


def default_frontend_count() -> int:
    """Return the number of frontend processes for the cores of this node."""
    cores = len(os.sched_getaffinity(0))
    return min(MAX_DEFAULT_FRONTENDS, max(1, cores // CORES_PER_FRONTEND))
