"""Requests to engines to change their role, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from hpc_dynamo.config import Role
from hpc_dynamo.engines.sglang.role_switch import SglangRoleSwitch
from hpc_dynamo.head.scaling.role_switch import EngineRoleSwitch
from hpc_dynamo.http import HttpClient

LIMIT_S = 60.0
NOBODY = "http://127.0.0.1:1"
DONE: dict[str, Any] = {"success": True, "message": "ok"}
BUSY = {"success": False, "message": "instance is not idle; drain all requests before switching"}
NIXL = {"success": False, "message": "transfer backend 'nixl' does not support runtime role switch"}


class SwitchingEngine:
    """Engine that gives these answers to requests to change its role; the last one repeatedly."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.asked, self.url = list(answers), list[dict[str, Any]](), ""
        self.hangs = False

    async def switch(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        if self.hangs:
            await asyncio.sleep(LIMIT_S)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(answer, status=200 if answer["success"] else 400)

    async def describe(self, request: web.Request) -> web.Response:
        state = {"decode_cuda_graph_bs": [4], "decode_cuda_graph_memory_gb": 1.5}
        return web.json_response({"internal_states": [state]})


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def started(stack: AsyncExitStack, *answers: dict[str, Any]) -> SwitchingEngine:
    engine, app = SwitchingEngine(*answers), web.Application()
    app.router.add_post("/pd_role_switch", engine.switch)
    app.router.add_get("/server_info", engine.describe)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return engine


async def change(
    stack: AsyncExitStack, url: str, role: Role, peer_url: str = "", limit_s: float = LIMIT_S
) -> str:
    client = await stack.enter_async_context(HttpClient.bearer("x"))
    return await EngineRoleSwitch(client, SglangRoleSwitch(), limit_s).change(url, role, peer_url)


async def test_idle_engine_changes_its_role(stack: AsyncExitStack) -> None:
    engine = await started(stack, DONE)
    assert await change(stack, engine.url, Role.prefill) == ""
    assert engine.asked == [{"new_role": "prefill"}]


async def test_busy_engine_is_asked_again(stack: AsyncExitStack) -> None:
    engine = await started(stack, BUSY, BUSY, DONE)
    assert await change(stack, engine.url, Role.prefill) == ""
    assert len(engine.asked) == 3


async def test_any_other_refusal_is_final(stack: AsyncExitStack) -> None:
    engine = await started(stack, NIXL, DONE)
    reason = await change(stack, engine.url, Role.prefill)
    assert reason == f"/pd_role_switch answered 400: {NIXL['message']}"
    assert len(engine.asked) == 1


async def test_new_decode_worker_is_described_by_its_peer(stack: AsyncExitStack) -> None:
    engine, peer = await started(stack, DONE), await started(stack, DONE)
    assert await change(stack, engine.url, Role.decode, peer.url) == ""
    assert engine.asked[0]["decode_cuda_graph_memory_gb"] == 1.5


async def test_peer_without_answer_is_ignored(stack: AsyncExitStack) -> None:
    engine = await started(stack, DONE)
    assert await change(stack, engine.url, Role.decode, NOBODY) == ""
    assert engine.asked[0]["decode_cuda_graph_memory_gb"] == 0


@pytest.mark.parametrize("hangs", [False, True], ids=["dead", "hangs"])
async def test_engine_without_answer_is_named(stack: AsyncExitStack, hangs: bool) -> None:
    engine = await started(stack, DONE)
    engine.hangs = True
    url = engine.url if hangs else NOBODY
    assert "/pd_role_switch" in await change(stack, url, Role.prefill, limit_s=0.2)
