"""Requests that SGLang cannot read: it answers them with status 500, as its own failures."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from tests.unit.dispatch.test_dispatch import (
    AS_IT_CAME,
    PATH,
    SOON_S,
    Body,
    House,
    Reply,
    failed,
    saying,
    text,
)

RAISED = "Internal server error: 'NoneType' object is not iterable"
FLAT = {"object": "error", "message": RAISED, "type": "InternalServerError", "code": 500}
NESTED = {"error": {"message": RAISED, "type": "InternalServerError", "code": 500}}
TRANSFER = FLAT | {"message": "Prefill transfer failed for request rank=0", "type": "500"}


def raising(error: Body) -> Reply:
    return saying(json.dumps(error).encode(), 500)


def in_turn(*replies: Reply) -> Reply:
    left = list(replies)

    async def reply(body: Body) -> web.Response:
        return await (left.pop(0) if len(left) > 1 else left[0])(body)

    return reply


@pytest.fixture
async def rooms() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack, SglangPdProtocol())


@pytest.mark.parametrize("error", [FLAT, NESTED])
@pytest.mark.parametrize("workers", [1, 2])
async def test_same_exception_twice_is_an_error_of_the_request(
    rooms: House, error: Body, workers: int
) -> None:
    dispatcher, engines = await rooms.whole(*[raising(error)] * workers)
    refused = await failed(dispatcher)
    assert refused.status == 400
    message = "the engine cannot read this request: 'NoneType' object is not iterable"
    assert refused.message == message
    assert json.loads(refused.body)["error"]["message"] == message
    assert sum(len(engine.bodies) for engine in engines) == 2


async def test_two_workers_that_share_a_request_are_asked_twice(rooms: House) -> None:
    dispatcher, *_ = await rooms.split(raising(FLAT), raising(FLAT))
    assert (await failed(dispatcher)).status == 400


async def test_exception_that_does_not_repeat_is_no_error_of_the_request(rooms: House) -> None:
    dispatcher, _ = await rooms.whole(in_turn(raising(FLAT), text))
    assert (await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)).content == AS_IT_CAME


@pytest.mark.parametrize(
    "second", [FLAT | {"message": "Internal server error: no space left"}, TRANSFER]
)
async def test_two_different_errors_keep_their_status(rooms: House, second: Body) -> None:
    dispatcher, _ = await rooms.whole(in_turn(raising(FLAT), raising(second)))
    error = await failed(dispatcher)
    assert (error.status, json.loads(error.body)) == (500, second)


async def test_failed_transfer_is_no_error_of_the_request(rooms: House) -> None:
    dispatcher, _ = await rooms.whole(raising(TRANSFER), raising(TRANSFER))
    error = await failed(dispatcher)
    assert (error.status, error.final) == (500, False)
