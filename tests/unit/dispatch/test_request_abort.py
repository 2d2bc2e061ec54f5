"""Requests that end early are aborted on SGLang's workers, and only there."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from tests.unit.dispatch.test_dispatch import (
    AS_IT_CAME,
    PATH,
    SOON_S,
    Engine,
    House,
    Sender,
    failed,
    handover,
    refusing,
    silent,
    text,
)


@pytest.fixture
async def rooms() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack, SglangPdProtocol())


@pytest.fixture
async def vllm_house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack)


async def abandon(dispatcher: Sender, prompt: Any, *engines: Engine) -> None:
    """Send a request and cancel it once all engines have it."""
    task = asyncio.create_task(dispatcher.send(PATH, {"prompt": prompt}, SOON_S))
    for engine in engines:
        await engine.has(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_abandoned_response_is_aborted_by_its_id(rooms: House) -> None:
    """SGLang has the id in another field there, and it is the response's own."""
    dispatcher, *engines = await rooms.split(silent, silent)
    sending = dispatcher.send("/v1/responses", {"input": "x", "prompt": ["a"]}, SOON_S)
    task = asyncio.create_task(sending)
    await asyncio.gather(*(engine.has(1) for engine in engines))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for engine in engines:
        request_id = engine.bodies[0]["request_id"]
        assert re.fullmatch("resp_[0-9a-f]{32}", request_id)
        assert await aborted(engine) == [request_id]


async def aborted(engine: Engine, count: int = 1) -> list[str]:
    async with asyncio.timeout(SOON_S):
        return [(await engine.aborted.get())["rid"] for _ in range(count)]


async def test_cancelled_request_is_aborted_on_both_workers(rooms: House) -> None:
    dispatcher, *engines = await rooms.split(silent, silent)
    await abandon(dispatcher, "x", *engines)
    for engine in engines:
        assert await aborted(engine) == [engine.bodies[0]["rid"]]


async def test_cancelled_request_is_aborted_on_aggregated_worker(rooms: House) -> None:
    dispatcher, engines = await rooms.whole(silent)
    await abandon(dispatcher, "x", *engines)
    assert await aborted(engines[0]) == [engines[0].bodies[0]["rid"]]


@pytest.mark.parametrize(
    ("prompt", "suffixes"),
    [
        (["one", "two"], ["_0", "_1"]),
        (["one"], ["_0"]),
        ([[1, 2], [3]], ["_0", "_1"]),
        ([1, 2, 3], [""]),
        ("", [""]),
    ],
)
async def test_each_prompt_of_a_list_is_aborted(
    rooms: House, prompt: Any, suffixes: list[str]
) -> None:
    dispatcher, *engines = await rooms.split(silent, silent)
    await abandon(dispatcher, prompt, *engines)
    for engine in engines:
        wanted = [engine.bodies[0]["rid"] + suffix for suffix in suffixes]
        assert await aborted(engine, len(suffixes)) == wanted


async def test_failed_request_is_aborted_on_both_workers(rooms: House) -> None:
    dispatcher, prefill, decode = await rooms.split(refusing(400), silent)
    assert (await failed(dispatcher)).status == 400
    assert await aborted(decode) == await aborted(prefill)


async def test_every_attempt_has_an_id_of_its_own(rooms: House) -> None:
    dispatcher, prefill, _ = await rooms.split(refusing(500), silent)
    await failed(dispatcher)
    ids = [body["rid"] for body in prefill.bodies]
    assert len(set(ids)) == len(ids)


async def test_complete_request_is_not_aborted(rooms: House) -> None:
    dispatcher, *engines = await rooms.split(text, text)
    assert (await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)).content == AS_IT_CAME
    assert all(engine.aborted.empty() for engine in engines)
    assert engines[0].bodies[0]["rid"] == engines[1].bodies[0]["rid"]


async def test_error_of_aggregated_worker_needs_no_abort(rooms: House) -> None:
    dispatcher, (engine,) = await rooms.whole(refusing(400))
    await failed(dispatcher)
    assert engine.aborted.empty()


async def test_dead_worker_does_not_prevent_abort_on_the_other(rooms: House) -> None:
    dispatcher, prefill, decode = await rooms.split(silent, silent)
    sent = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
    await asyncio.gather(prefill.has(1), decode.has(1))
    dispatcher.remove_worker(0)
    assert await aborted(decode) == [decode.bodies[0]["rid"]]
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)


async def test_requests_to_other_engines_have_no_id(vllm_house: House) -> None:
    dispatcher, prefill, decode = await vllm_house.split(handover, silent)
    await abandon(dispatcher, "x", prefill, decode)
    assert prefill.aborted.empty()
    assert not any("rid" in body for body in prefill.bodies + decode.bodies)
