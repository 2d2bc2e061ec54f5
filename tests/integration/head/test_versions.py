"""Workers whose vLLM version the others refuse get no requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from aiohttp import web
from msgspec.structs import replace

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Role
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.membership.external import ExternalWorkers
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import (
    ControlMessage,
    Hello,
    NodeRecord,
    Roster,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Run
from hpc_dynamo.tasks.node import CODEC
from hpc_dynamo.topology import plan
from hpc_dynamo.wire import ControlClient, ControlServer

HERE = "127.0.0.1"
SOON_S = 60.0
WORDS = ("engine=vllm", "engine.device=cpu", "topology=disaggregated", "model.path=/m")
PREFILL = WorkerReport(
    rank=0,
    role=Role.prefill,
    node=0,
    host="n1",
    state=WorkerState.ready,
    url="http://x",
    version="0.32.0",
)
DECODE = replace(PREFILL, rank=1, role=Role.decode, host="n2", version="0.33.0")


class House(NamedTuple):
    """Membership of a head, its router, and the agent of its workers."""

    members: Membership
    router: RequestRouter
    agent: ControlClient[ControlMessage]


@asynccontextmanager
async def membership(run: Run, errors: list[EngineError], *words: str) -> AsyncIterator[House]:
    """Yield the membership of a head with one agent."""
    config = compose([*WORDS, *words])
    layout = plan(config)
    attempt, keys = run.new_attempt(config, layout), run.secrets().keys
    server = ControlServer(HERE, keys, CODEC)
    agent = ControlClient(server.endpoint, keys, CODEC)
    node = NodeRecord(node=0, host="n1", address=HERE, pid=1, log="")
    router = RequestRouter.from_config(config)
    roster = Roster(nodes=(node,), method="", seconds=0)
    members = Membership(attempt, roster, server, {"": router}, errors.append)
    listening = asyncio.create_task(members.listen())
    try:
        await agent.send(Hello(node=node))
        yield House(members, router, agent)
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        agent.close()
        server.close()


async def states(house: House, *reports: WorkerReport, changes: int) -> list[tuple[int, str]]:
    """Send reports; return rank and state of the changes that follow."""
    with house.members.subscribe() as published:
        for report in reports:
            await house.agent.send(report)
        async with asyncio.timeout(SOON_S):
            found = [await published.get() for _ in range(changes)]
    return [(report.rank, str(report.state)) for report in found]


async def test_worker_of_another_version_is_lost_and_named(run: Run) -> None:
    errors = list[EngineError]()
    async with membership(run, errors) as house:
        found = await states(house, PREFILL, DECODE, changes=2)
        assert found == [(0, "ready"), (1, "lost")]
        assert [worker.rank for worker in house.router.workers] == [0]
        assert "refuse each other's KV transfers" in house.members.workers[1].detail
        assert "vllm 0.33.0 of decode worker 1 on n2" in str(errors[0])


async def test_requests_go_to_the_version_of_most_workers(run: Run) -> None:
    """A worker of another version is ready first. It gets requests only until the others are."""
    errors = list[EngineError]()
    async with membership(run, errors, "topology.prefill.workers=2") as house:
        second, decode = replace(PREFILL, rank=1, version="0.33.0"), replace(DECODE, rank=2)
        assert await states(house, PREFILL, second, changes=2) == [(0, "ready"), (1, "starting")]
        assert [worker.rank for worker in house.router.workers] == [0]
        found = await states(house, decode, changes=3)
        assert found == [(2, "ready"), (0, "lost"), (1, "ready")]
        assert {worker.rank for worker in house.router.workers} == {1, 2}
        assert "vllm 0.32.0 of prefill worker 0" in house.members.workers[0].detail
    assert errors == []


async def external_engine(stack: AsyncExitStack, version: str, begun: asyncio.Event) -> str:
    """Start an engine that hpc_dynamo did not start, and that serves from an event on. Return its
    URL."""

    async def answer(request: web.Request) -> web.Response:
        if not begun.is_set():
            raise web.HTTPServiceUnavailable
        return web.json_response({"data": [{"id": "m"}], "version": version})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, HERE, 0).start()
    return f"http://{HERE}:{runner.addresses[0][1]}"


async def test_route_uses_the_version_of_most_external_engines() -> None:
    first, others, changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first.set()
    async with AsyncExitStack() as stack:
        urls = [
            await external_engine(stack, f"0.{minor}.0", begun)
            for minor, begun in ((32, first), (33, others), (33, others))
        ]
        engines = [f"route.prefill=[{urls[0]},{urls[1]}]", f"route.decode=[{urls[2]}]"]
        config = compose(["engine=vllm", "topology=disaggregated", *engines])
        router = RequestRouter.from_config(config, changed)
        http = await stack.enter_async_context(HttpClient.bearer("key"))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        members = ExternalWorkers(config, router, http, group)
        watching = group.create_task(members.watch())
        async with asyncio.timeout(SOON_S):
            for event, expected in ((first, {0}), (others, {1, 2})):
                event.set()
                while {worker.rank for worker in router.workers} != expected:
                    changed.clear()
                    await changed.wait()
        watching.cancel()
