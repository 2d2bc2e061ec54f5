"""Loads of a peer head, read over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from hpc_dynamo.head.membership.peer_heads import PeerHeads
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import RequestRouter, WorkerDemand
from hpc_dynamo.router.scheduling.peer_loads import PublishedLoads
from tests.unit.router.requests import aggregated_router

SOON_S = 60.0
AT = "http://n0:1"
BUSY = WorkerDemand(40, 10, 3)


class Head:
    """Server that returns `content` to clients with the key, and counts requests."""

    def __init__(self) -> None:
        self.status, self.content, self.url = 200, b"", ""
        self._asked, self._more = 0, asyncio.Condition()

    def served_by(self, name: str, **path_of: WorkerDemand) -> None:
        workers = {f"http://{host}:1": load for host, load in path_of.items()}
        self.content = msgspec.json.encode(PublishedLoads(name, workers))

    async def answer(self, request: web.Request) -> web.Response:
        assert (request.path, request.headers["Authorization"]) == ("/v1/loads", "Bearer key")
        async with self._more:
            self._asked += 1
            self._more.notify_all()
        return web.Response(status=self.status, body=self.content)

    async def wait_until_read(self) -> None:
        """Wait until the present content was read: two more requests have arrived."""
        async with asyncio.timeout(SOON_S), self._more:
            until = self._asked + 2
            await self._more.wait_for(lambda: self._asked >= until)


@asynccontextmanager
async def listening(router: RequestRouter) -> AsyncIterator[Head]:
    """Run a peer head that a router reads."""
    head, app = Head(), web.Application()
    app.router.add_get("/{any:.*}", head.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with HttpClient.bearer("key") as client, asyncio.TaskGroup() as group:
        following = group.create_task(PeerHeads(router, [site.name], client).run())
        yield head
        following.cancel()
    await runner.cleanup()


def others(router: RequestRouter) -> WorkerDemand:
    return next(iter(router.workers)).peer_load


async def test_last_loads_of_a_peer_count() -> None:
    router = await aggregated_router(1)
    async with listening(router) as head:
        head.served_by("other", n0=BUSY, n9=BUSY)
        await head.wait_until_read()
        assert others(router) == BUSY
        head.served_by("other")
        await head.wait_until_read()
        assert others(router) == WorkerDemand()


async def test_head_does_not_count_itself() -> None:
    router = await aggregated_router(1)
    async with listening(router) as head:
        head.served_by(router.head_name, n0=BUSY)
        await head.wait_until_read()
        assert others(router) == WorkerDemand()


@pytest.mark.parametrize(
    ("status", "content"), [(401, b"{}"), (200, b"{}"), (200, b"\xff"), (500, b"")]
)
async def test_invalid_answer_counts_as_silence(status: int, content: bytes) -> None:
    router = await aggregated_router(1)
    async with listening(router) as head:
        head.served_by("other", n0=BUSY)
        await head.wait_until_read()
        head.status, head.content = status, content
        async with asyncio.timeout(SOON_S):
            while others(router) != WorkerDemand():
                await head.wait_until_read()
        head.status = 200
        head.served_by("other", n0=BUSY)
        await head.wait_until_read()
        assert others(router) == BUSY
