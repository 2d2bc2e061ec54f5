"""Simulator ranks inside the test's process: they start in milliseconds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hpc_dynamo.http import HttpServer
from hpc_dynamo.simulator.__main__ import running_engine
from hpc_dynamo.simulator.engine_context import EngineContext
from hpc_dynamo.simulator.nodes import FollowerNodes
from hpc_dynamo.simulator.options import parser
from hpc_dynamo.simulator.server import HttpApi

MODEL, KEY = "demo", "key-of-the-test"
IDLE_S = 60.0


@asynccontextmanager
async def local_simulator(*options: str) -> AsyncIterator[str]:
    """Yield the URL of a rank. At the end it must have no requests."""
    args = parser().parse_args(["--model", MODEL, "--timing", "instant", *options])
    api = HttpApi(KEY)
    async with HttpServer(api.handle) as server:
        port = await server.listen("127.0.0.1", 0)
        async with running_engine(args, port, KEY, FollowerNodes(1, KEY)) as engine:
            api.open(engine)
            yield f"http://127.0.0.1:{port}"
            async with asyncio.timeout(IDLE_S):
                while _requests(engine):  # noqa: ASYNC110  # nothing reports it
                    await asyncio.sleep(0.001)


def _requests(engine: EngineContext) -> float:
    engine.scheduler.update_gauges()
    return engine.metrics.running + engine.metrics.waiting
