"""Waits until an engine process of this node exits or hangs."""

import asyncio

from hpc_dynamo.agent.engine_process import EngineProcess, PortTaken
from hpc_dynamo.agent.hang_detector import check_interval_s
from hpc_dynamo.agent.progress_watch import ProgressWatch, WatchedEngine
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import engine, pd_protocol_of, probe_fields
from hpc_dynamo.errors import EngineError
from hpc_dynamo.http import HttpClient
from hpc_dynamo.process.child import Child


async def wait_for_shard(process: EngineProcess, child: Child) -> EngineError:
    """Return the error of a shard that has exited, or is stopped; then it is killed.

    Another shard, the first one, serves requests and shows the progress of all.
    """
    exited = asyncio.create_task(child.wait())
    stopped = asyncio.create_task(_wait_until_stopped(process, child))
    try:
        await asyncio.wait({exited, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            return process.exit_error(exited.result())
        await child.kill()
        return process.error(f"hangs: stopped by a signal for {process.hang_timeout_s:.0f} s")
    finally:
        exited.cancel()
        stopped.cancel()


async def _wait_until_stopped(process: EngineProcess, child: Child) -> None:
    timeout_s = process.hang_timeout_s
    interval_s = check_interval_s(timeout_s)
    stopped_s = 0.0
    while stopped_s < timeout_s:
        await asyncio.sleep(interval_s)
        usage = await process.usage(child)
        stopped_s = stopped_s + interval_s if usage and usage.stopped else 0.0


class HangWatch:
    """Watch of one worker, also over restarts of its engine."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._progress: ProgressWatch | None = None  # present engine

    def set_asleep(self, asleep: bool) -> None:
        """Expect no progress of the worker while it sleeps."""
        if self._progress:
            self._progress.asleep = asleep

    async def wait_for_hang(
        self,
        config: Config,
        process: EngineProcess,
        child: Child,
        role: Role,
        exited: asyncio.Task[EngineError],
    ) -> str:
        """Return what happened, once the engine hangs; empty once it has exited."""
        async with HttpClient.bearer(self._token) as http:
            watched = _watched(config, process, child, role)
            self._progress = ProgressWatch(http, watched, config.engine.hang_timeout_s)
            hang = asyncio.create_task(self._progress.wait_for_hang())
            try:
                await asyncio.wait({hang, exited}, return_when=asyncio.FIRST_COMPLETED)
                return "" if exited.done() else hang.result()
            finally:
                hang.cancel()
                await asyncio.gather(hang, return_exceptions=True)
                self._progress = None


async def _has_port(process: EngineProcess) -> bool:
    try:
        return await process.listens()
    except PortTaken:  # the engine has closed its port, so it makes no progress
        return False


def _watched(config: Config, process: EngineProcess, child: Child, role: Role) -> WatchedEngine:
    fields = probe_fields(pd_protocol_of(config.engine), role)
    names = engine(config.engine.name).metrics
    name = config.model.served_name
    usage, listens = lambda: process.usage(child), lambda: _has_port(process)
    return WatchedEngine(process.url, name, fields, names, usage, listens)
