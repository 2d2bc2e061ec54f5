"""Responses with status 200 that are no answer. Engines are small servers on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from hpc_dynamo.dispatch import EngineRequest, IncomingResponse, WorkerFailed
from hpc_dynamo.dispatch.response_check import BadResponse, CheckedResponse, is_complete
from hpc_dynamo.engines import COMPLETIONS, Body
from hpc_dynamo.http import HttpClient, HttpRequest, HttpServer, ResponseWriter
from hpc_dynamo.router import Lease, RoutingRequest
from tests.unit.dispatch.test_dispatch import PATH, SOON_S, House, Reply, Sender

ANSWER = b'{"choices": [{"text": "caf\xc3\xa9"}]}'
EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'
STREAM = EVENT + b"data: [DONE]\n\n"
JSON, EVENTS, HTML = "application/json", "text/event-stream", "text/html"


def replying(content: bytes, content_type: str) -> Reply:
    async def reply(body: object) -> web.Response:
        return web.Response(body=content, content_type=content_type)

    return reply


class Relay:
    """Sink that keeps what it relays."""

    def __init__(self) -> None:
        self.content, self.complete = b"", False
        self.congested = False

    @property
    def started(self) -> bool:
        return bool(self.content)

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        if response.headers["content-type"].startswith(EVENTS):
            await response.relay(self)
        else:
            self.content = await response.read()
        self.complete = True

    def write(self, data: bytes) -> None:
        self.content += data

    async def drain(self) -> None: ...


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack)


async def send(sender: Sender, body: Body, path: str = PATH) -> Relay:
    sink, content = Relay(), json.dumps(body).encode()
    async with asyncio.timeout(SOON_S):
        await sender.dispatcher.run(EngineRequest(path, content, body, RoutingRequest()), sink)
    return sink


BAD = {
    "empty": (b"", JSON),
    "garbage": (bytes(range(128, 256)), JSON),
    "html": (b"<html></html>", HTML),
    "html as json": (b"<html></html>", JSON),
    "not utf-8": (ANSWER.replace(b"\xc3", b"\xff"), JSON),
    "truncated": (ANSWER[:-3], JSON),
    "two objects": (ANSWER * 2, JSON),
    "list": (b"[]", JSON),
    "null": (b"null", JSON),
    "nested": (b'{"a":' * 9999, JSON),
    "text": (b"OK", "text/plain"),
    "stream": (STREAM, EVENTS),
}
BAD_STREAMS = {
    "empty": (b"", EVENTS),
    "garbage": (bytes(range(128, 256)), EVENTS),
    "html": (b"<html></html>", HTML),
    "html as events": (b"<html></html>", EVENTS),
    "object": (ANSWER, JSON),
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_answer_is_replaced_by_that_of_another_worker(house: House, kind: str) -> None:
    sender, engines = await house.whole(replying(*BAD[kind]), replying(ANSWER, JSON))
    assert (await send(sender, {"prompt": "x"})).content == ANSWER
    assert [len(engine.bodies) for engine in engines] == [1, 1]


@pytest.mark.parametrize("kind", BAD_STREAMS)
async def test_bad_stream_is_replaced_by_that_of_another_worker(house: House, kind: str) -> None:
    sender, engines = await house.whole(replying(*BAD_STREAMS[kind]), replying(STREAM, EVENTS))
    assert (await send(sender, {"prompt": "x", "stream": True})).content == STREAM
    assert [len(engine.bodies) for engine in engines] == [1, 1]


async def test_worker_with_bad_answers_is_avoided(house: House) -> None:
    sender, engines = await house.whole(replying(b"", JSON), replying(ANSWER, JSON))
    for _ in range(9):
        await send(sender, {"prompt": "x"})
    assert len(engines[0].bodies) == 1


@pytest.mark.parametrize("content", [EVENT, STREAM[:-9], EVENT + b"data: [DON", b"\n\n"])
async def test_stream_without_its_end_fails(house: House, content: bytes) -> None:
    sender, _ = await house.whole(replying(content, EVENTS))
    with pytest.raises(WorkerFailed, match="stream that ended early"):
        await send(sender, {"prompt": "x", "stream": True})


DELTA = b'event: response.output_text.delta\ndata: {"delta": "a\\nevent: response.completed"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"text": "a\\nevent: x"}\n\n'


def test_end_of_responses_stream_is_its_last_event() -> None:
    for content in (DELTA * 2, b": a comment\n\n" + DELTA):
        assert not is_complete("/v1/responses", b"\n" + content)
    for content in (DELTA + COMPLETED, COMPLETED, DELTA + COMPLETED + b"data: [DONE]\n\n"):
        assert is_complete("/v1/responses", b"\n" + content)
    assert is_complete("/v1/responses", b"the rest of a long event\n\n")


@pytest.mark.parametrize("pieces", [1, 2, 7, len(STREAM)])
async def test_end_of_stream_is_found_in_whatever_pieces_it_arrives(
    house: House, pieces: int
) -> None:
    async def reply(body: object) -> web.Response:
        return web.Response(body=in_pieces(), content_type=EVENTS)

    async def in_pieces() -> AsyncIterator[bytes]:
        size = -(-len(STREAM) // pieces)
        for start in range(0, len(STREAM), size):
            yield STREAM[start : start + size]
            await asyncio.sleep(0)

    sender, _ = await house.whole(reply)
    sink = await send(sender, {"prompt": "x", "stream": True})
    assert (sink.content, sink.complete) == (STREAM, True)


async def checked(path: str, content: bytes) -> bytes:
    async def serve(request: HttpRequest, response: ResponseWriter) -> None:
        response.send(200, content, [(b"content-type", b"application/json")])

    async with HttpServer(serve) as server, HttpClient() as client:
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        async with client.send("POST", url, path) as answer:
            return await CheckedResponse(answer, path, stream=False).read()


@pytest.mark.parametrize("content", [b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a": -Infinity}'])
async def test_values_that_only_some_readers_accept_make_no_worker_look_broken(
    content: bytes,
) -> None:
    """One request whose values an engine repeats closed two workers to all for 15 s."""
    for path in (COMPLETIONS, "/v1/embeddings"):
        assert await checked(path, content) == content
        for broken in (content[:-1], b"[" + content, content + b"x"):
            with pytest.raises(BadResponse):
                await checked(path, broken)
    with pytest.raises(BadResponse):
        await checked(COMPLETIONS, b"[NaN]")
    assert await checked("/v1/embeddings", b"[NaN]") == b"[NaN]"


def test_error_event_ends_a_stream_of_messages() -> None:
    assert is_complete("/v1/messages", b'event: error\ndata: {"type": "error"}\n\n')
    assert not is_complete("/v1/messages", b'data: {"type": "content_block_delta"}\n\n')
