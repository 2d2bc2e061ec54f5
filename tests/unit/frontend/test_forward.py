"""Forwarding to the next job of this run, over sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend.forward import ATTEMPT_HEADER, SuccessorForwarder
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import (
    Handler,
    HttpClient,
    HttpRequest,
    HttpResponse,
    HttpServer,
    ResponseWriter,
)

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")
KEY = {"authorization": "Bearer secret", "x-session-id": "a b"}


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    async with HttpServer(handler) as server:
        yield f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}/v1"


class Front:
    """Server of the old job: answers 299 to requests that it does not forward."""

    def __init__(self, client: HttpClient, url: str, number: int = 1) -> None:
        self.stats, self.url = FrontendStats(), url
        self.forwarder = SuccessorForwarder(client, number, self.stats)
        self.broken = list[str]()

    async def __call__(self, request: HttpRequest, reply: ResponseWriter) -> None:
        try:
            if not await self.forwarder.forward(self.url, request, reply, "id"):
                reply.send(299, b"own")
        except RequestFailed as e:
            self.broken.append(e.message)


@asynccontextmanager
async def asked(
    handler: Handler, headers: dict[str, str] = KEY, number: int = 1
) -> AsyncIterator[tuple[HttpResponse, Front]]:
    """Return the response through a job that forwards to one with this handler."""
    async with HttpClient() as client, listening(handler) as url:
        front = Front(client, url, number)
        async with listening(front) as own, HttpClient() as asker:
            given = [(name.encode(), value.encode()) for name, value in headers.items()]
            sent = asker.send("POST", own, "/v1/completions?a=b", b'{"x": 1}', given)
            async with asyncio.timeout(60), sent as answer:
                yield answer, front


async def test_forwarded_request_and_response_are_unchanged() -> None:
    seen = list[HttpRequest]()

    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        seen.append(request)
        reply.send(429, b'{"error": {}}', [JSON, (b"retry-after", b"7")])

    async with asked(after) as (answer, front):
        assert (answer.status, await answer.read()) == (429, b'{"error": {}}')
        assert answer.headers["retry-after"] == "7"
        assert (front.stats.forwarded, front.stats.forwarding) == (1, 0)
    (request,) = seen
    assert (request.path, request.query, request.body) == ("/v1/completions", "a=b", b'{"x": 1}')
    assert request.headers.items() >= {**KEY, "x-request-id": "id", ATTEMPT_HEADER: "1"}.items()


async def test_forwarded_stream_arrives_piece_by_piece() -> None:
    more = asyncio.Event()

    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200, [EVENTS])
        reply.write(b"data: 1\n\n")
        await more.wait()  # set when the first piece has arrived
        reply.write(b"data: 2\n\n")
        reply.end()

    pieces = list[bytes]()

    class Sink:
        congested = False

        def write(self, data: bytes) -> None:
            pieces.append(data)
            more.set()

        async def drain(self) -> None: ...

    async with asked(after) as (answer, _):
        assert answer.headers["content-type"] == "text/event-stream"
        await answer.relay(Sink())
    assert pieces == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_client_disconnect_cancels_forwarded_request() -> None:
    left = asyncio.Event()

    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200, [EVENTS])
        reply.write(b"data: 1\n\n")
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with asked(after) as (_, front):
        assert front.stats.forwarding == 1
    async with asyncio.timeout(60):
        await left.wait()


async def test_unavailable_successor_is_not_forwarded() -> None:
    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.send(503, b"draining")

    async with asked(after) as (answer, _):
        assert (answer.status, await answer.read()) == (299, b"own")


@pytest.mark.parametrize(
    ("by", "status"), [("0", 200), ("1", 299), ("2", 299), ("x", 200), ("9" * 5000, 299)]
)
async def test_returning_request_is_not_forwarded_again(by: str, status: int) -> None:
    """A request passes a chain of three jobs, but returns to none of them."""

    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.send(200, b"")

    async with asked(after, {ATTEMPT_HEADER: by}) as (answer, _):
        assert answer.status == status


async def test_unreachable_successor_is_not_forwarded() -> None:
    async def gone(request: HttpRequest, reply: ResponseWriter) -> None: ...

    async with listening(gone) as url:
        pass
    async with HttpClient() as client:
        front = Front(client, url)
        async with listening(front) as own, HttpClient() as asker:
            async with asker.send("POST", own, "/v1/completions") as answer:
                assert (answer.status, await answer.read()) == (299, b"own")


async def test_interrupted_forwarded_stream_raises() -> None:
    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        reply.begin(200, [EVENTS])
        reply.write(b"data: 1\n\n")  # the server closes the connection without an end

    async with asked(after) as (answer, front):
        with pytest.raises(ConnectionError):
            await answer.read()
        assert "the next job of this run" in front.broken[0]


async def test_replaced_successor_aborts_forwarded_requests() -> None:
    arrived = asyncio.Event()

    async def after(request: HttpRequest, reply: ResponseWriter) -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with HttpClient() as client, listening(after) as url:
        front = Front(client, url)
        async with listening(front) as own, HttpClient() as asker, asyncio.TaskGroup() as group:

            async def give_up() -> None:
                await arrived.wait()
                front.forwarder.set_successor(url)  # still there
                front.forwarder.set_successor("")

            group.create_task(give_up())
            async with asyncio.timeout(60), asker.send("POST", own, "/v1/x") as answer:
                assert answer.status == 299
