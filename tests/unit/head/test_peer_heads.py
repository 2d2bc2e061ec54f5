"""What a head makes of what another one says, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from hpc_dynamo.head.membership.peer_heads import PeerHeads
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import Router, WorkerDemand
from hpc_dynamo.router.scheduling.peer_loads import PublishedLoads
from tests.unit.router.requests import whole

SOON_S = 20.0
AT = "http://n0:1"
BUSY = WorkerDemand(40, 10, 3)


class Head:
    """Says `content` to whoever has the key, and counts."""

    def __init__(self) -> None:
        self.status, self.content, self.url = 200, b"", ""
        self._asked, self._more = 0, asyncio.Condition()

    def says(self, name: str, **on: WorkerDemand) -> None:
        workers = {f"http://{host}:1": load for host, load in on.items()}
        self.content = msgspec.json.encode(PublishedLoads(name, workers))

    async def answer(self, request: web.Request) -> web.Response:
        assert (request.path, request.headers["Authorization"]) == ("/v1/loads", "Bearer key")
        async with self._more:
            self._asked += 1
            self._more.notify_all()
        return web.Response(status=self.status, body=self.content)

    async def heard(self) -> None:
        """What is said now has been taken in: it was asked for, and once more after that."""
        async with asyncio.timeout(SOON_S), self._more:
            until = self._asked + 2
            await self._more.wait_for(lambda: self._asked >= until)


@asynccontextmanager
async def listening(router: Router) -> AsyncIterator[Head]:
    """A head that the router's own follows."""
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


def others(router: Router) -> WorkerDemand:
    return next(iter(router.workers)).peer_load


async def test_the_last_word_is_believed() -> None:
    router = await whole(1)
    async with listening(router) as head:
        head.says("other", n0=BUSY, n9=BUSY)
        await head.heard()
        assert others(router) == BUSY
        head.says("other")
        await head.heard()
        assert others(router) == WorkerDemand()


async def test_a_head_that_hears_itself_does_not_count_it() -> None:
    router = await whole(1)
    async with listening(router) as head:
        head.says(router.head_name, n0=BUSY)
        await head.heard()
        assert others(router) == WorkerDemand()


@pytest.mark.parametrize(
    ("status", "content"), [(401, b"{}"), (200, b"{}"), (200, b"\xff"), (500, b"")]
)
async def test_what_is_no_answer_is_silence(status: int, content: bytes) -> None:
    router = await whole(1)
    async with listening(router) as head:
        head.says("other", n0=BUSY)
        await head.heard()
        head.status, head.content = status, content
        async with asyncio.timeout(SOON_S):
            while others(router) != WorkerDemand():
                await head.heard()
        head.status = 200
        head.says("other", n0=BUSY)
        await head.heard()
        assert others(router) == BUSY
