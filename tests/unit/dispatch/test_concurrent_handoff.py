"""Requests that two workers receive at the same time, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from hpc_dynamo.config import Role
from hpc_dynamo.dispatch import BufferedResponse
from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from hpc_dynamo.errors import RequestFailed
from tests.unit.dispatch.test_dispatch import (
    AS_IT_CAME,
    PATH,
    SOON_S,
    Body,
    House,
    Reply,
    failed,
    refusing,
    silent,
    text,
)

MET = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "rid")


class Begun(BufferedResponse):
    """Sink of a response that has started."""

    started = True


@pytest.fixture
async def rooms() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack, SglangPdProtocol())


def once(event: asyncio.Event, reply: Reply) -> Reply:
    async def after(body: Body) -> web.Response:
        await event.wait()
        return await reply(body)

    return after


def telling(event: asyncio.Event) -> Reply:
    """Engine that never answers; `event` is set when the client disconnects."""

    async def reply(body: Body) -> web.Response:
        try:
            return await silent(body)
        except asyncio.CancelledError:
            event.set()
            raise

    return reply


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_both_workers_get_request_and_decode_answers(rooms: House) -> None:
    come = asyncio.Event()

    async def second(body: Body) -> web.Response:
        come.set()
        return await text(body)

    dispatcher, prefill, decode = await rooms.split(once(come, refusing(200)), second)
    body = {"prompt": "p", "max_tokens": 50, "stream": False}
    answer = await dispatcher.send(PATH, body, SOON_S)
    assert (answer.content, answer.rank) == (AS_IT_CAME, 1)
    (asked,), (handed,) = prefill.bodies, decode.bodies
    room = {name: handed[name] for name in MET}
    assert room["bootstrap_host"] == "127.0.0.1"
    assert room["bootstrap_port"] == 8998
    assert 0 <= room["bootstrap_room"] < 2**63
    assert handed == body | room
    assert asked == {"prompt": "p", "max_tokens": 50} | room
    assert [m.active for m in dispatcher.workers] == [0, 0]


async def test_each_request_has_a_room_and_bootstrap_info_is_cached(rooms: House) -> None:
    dispatcher, prefill, decode = await rooms.split(text, text)
    for _ in range(5):
        await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)
    assert prefill.introduced == 1
    assert decode.introduced == 0
    assert len({body["bootstrap_room"] for body in decode.bodies}) == 5


@pytest.mark.parametrize("refuser", [0, 1])
@pytest.mark.parametrize("status", [400, 500])
async def test_failure_of_one_worker_cancels_the_other(
    rooms: House, refuser: int, status: int
) -> None:
    left, come = asyncio.Event(), asyncio.Event()

    async def second(body: Body) -> web.Response:
        come.set()
        return await telling(left)(body)

    replies = [once(come, refusing(status)), second]
    dispatcher, *_ = await rooms.split(*(replies if refuser == 0 else reversed(replies)))
    error = await failed(dispatcher)
    assert (error.status, error.body) == (status, b'{"error": "so it is"}')
    assert f"worker {refuser} answered {status}" in error.message
    async with asyncio.timeout(SOON_S):
        await left.wait()
    assert [m.active for m in dispatcher.workers] == [0, 0]


async def test_connection_failure_is_raised_before_error_response(rooms: House) -> None:
    """Only the prefill worker has failed, so only it is replaced in the next attempt."""
    both, gone = asyncio.Event(), asyncio.Event()
    hits = 0

    async def decode(body: Body) -> web.Response:
        nonlocal hits
        hits += 1
        if hits > 1:
            return await text(body)
        both.set()
        await gone.wait()
        return await refusing(500)(body)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if gone.is_set():  # depends on the order of its end and the next attempt
            await closed(writer)
            return
        await reader.readuntil(b"\r\n\r\n")
        told = b'{"disaggregation_bootstrap_port": 1}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))
        await reader.readuntil(b"\r\n\r\n")
        await both.wait()
        gone.set()
        await closed(writer)

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dispatcher, _, engine = await rooms.split(text, decode)
        dispatcher.remove_worker(0)
        await dispatcher.add_worker(7, Role.prefill, f"http://127.0.0.1:{port}")
        sending = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
        await both.wait()
        other = await rooms.engine(text)
        await dispatcher.add_worker(8, Role.prefill, other.url)
        assert (await sending).rank == 1
    assert len(engine.bodies) == 2
    assert len(other.bodies) == 1


async def test_prefill_failure_after_start_of_response_is_ignored(rooms: House) -> None:
    dispatcher, prefill, _ = await rooms.split(refusing(500), text)
    answer = await dispatcher.send(PATH, {"prompt": "x"}, SOON_S, Begun())
    assert answer.content == AS_IT_CAME
    assert len(prefill.bodies) == 1


async def test_cancelled_request_ends_on_both_workers(rooms: House) -> None:
    left = [asyncio.Event(), asyncio.Event()]
    dispatcher, *engines = await rooms.split(*map(telling, left))
    task = asyncio.create_task(dispatcher.send(PATH, {"prompt": "x"}, SOON_S))
    for engine in engines:
        await engine.has(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(SOON_S):
        for event in left:
            await event.wait()
    assert [m.active for m in dispatcher.workers] == [0, 0]


async def test_prefill_worker_without_bootstrap_info_fails_request(rooms: House) -> None:
    dispatcher, prefill, decode = await rooms.split(text, text)
    prefill.told = {"disaggregation_bootstrap_port": None}
    error: RequestFailed = await failed(dispatcher)
    assert error.status == 502
    assert "reports no disaggregation_bootstrap_port" in error.message
    assert "--disaggregation-mode prefill" in error.hint
    assert prefill.bodies == decode.bodies == []
