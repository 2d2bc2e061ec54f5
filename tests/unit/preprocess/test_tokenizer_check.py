"""Comparison of token ids with an engine, which may start after the first request fails."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.dispatch import Dispatcher
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.frontend.tokenizer_check import tokenizer_matches_engine
from hpc_dynamo.http import HttpClient
from hpc_dynamo.preprocess import Preprocessor
from hpc_dynamo.router import Lease, NoWorker, RequestRouter, RoutingRequest
from hpc_dynamo.router.scheduling.limits import AdmissionLimits

SOON_S = 60.0


class Slow:
    """Router whose only worker joins after the first request has failed."""

    def __init__(self, url: str) -> None:
        self._router = RequestRouter(
            TopologyKind.aggregated, RouterConfig(), AdmissionLimits(queue_timeout_s=0.05)
        )
        self._url = url
        self.refused = 0

    async def route(self, ask: RoutingRequest) -> Lease:
        try:
            return await self._router.route(ask)
        except NoWorker:
            self.refused += 1
            await self._router.add_worker(0, Role.aggregated, self._url)
            raise


@pytest.mark.parametrize("same", [True, False])
async def test_tokenizer_check_retries_until_engine_is_ready(
    folders: dict[str, Path], same: bool
) -> None:
    prompts = Preprocessor.load(folders["llama3"])
    ids = [list(expected.ids) for _, expected in await prompts.probes()]
    asked = list[object]()

    async def tokenize(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"tokens": ids[len(asked) - 1] if same else [1, 2, 3]})

    app = web.Application()
    app.router.add_post("/tokenize", tokenize)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    slow = Slow(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with (
            asyncio.timeout(SOON_S),
            HttpClient.bearer("k") as client,
            asyncio.TaskGroup() as t,
        ):
            to = Dispatcher(slow, VllmPdProtocol(), client, t)
            assert (
                await tokenizer_matches_engine(
                    prompts, to, "m", RoutingRequest(may_disaggregate=False), retry_s=0
                )
                is same
            )
    finally:
        await runner.cleanup()
    assert (slow.refused, len(asked)) == (1, len(ids) if same else 1)
