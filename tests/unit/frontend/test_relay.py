"""Errors of engines in the middle of a stream, as the relay of a frontend finds them."""

import asyncio
from dataclasses import dataclass, field

import pytest

from hpc_dynamo.dispatch import StreamRecord, WorkerFailed
from hpc_dynamo.dispatch.merged_response import placeholder_lease
from hpc_dynamo.dispatch.response_check import CheckedResponse
from hpc_dynamo.dispatch.stream_record import MAX_EVENT_BYTES
from hpc_dynamo.frontend.relay import MAX_WHOLE_BYTES, ResponseRelay
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import ByteSink, HttpClient, HttpRequest, HttpServer, ResponseWriter

JSON = (b"content-type", b"application/json")

TEXT = b'data: {"choices": [{"text": "one"}]}\n\n'
FAILED = {
    "openai": b'data: {"error": {"message": "dead", "code": 500}}\n\n',
    "anthropic": b'event: error\ndata: {"type": "error", "error": {"message": "dead"}}\n\n',
    "responses": b'event: error\ndata: {"type": "error", "message": "dead", "code": "x"}\n\n',
}
REFUSED = b'data: {"error": {"message": "no", "code": 400}}\n\n'
HARMLESS = b'data: {"choices": [{"text": "data: {\\"error\\" event: error \\nevent: error"}]}\n\n'


@dataclass
class Received:
    """ResponseTransport that keeps what a client gets."""

    content: bytes = b""
    congested: bool = False

    def send(self, data: bytes) -> None:
        self.content += data

    async def wait_writable(self) -> None: ...


@dataclass
class Pieces:
    """IncomingResponse in pieces."""

    pieces: list[bytes]
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})

    async def read(self) -> bytes:
        return b"".join(self.pieces)

    async def relay(self, sink: ByteSink) -> None:
        for piece in self.pieces:
            sink.write(piece)


async def relayed(*pieces: bytes) -> tuple[bytes, WorkerFailed | None]:
    """Return what the client gets, and the error."""
    received, error = Received(), None
    writer = ResponseWriter(received, keep_alive=True, http10=True, head_only=False)
    relay = ResponseRelay(writer, FrontendStats(), StreamRecord())
    try:
        await relay.receive(Pieces([*pieces]), placeholder_lease(rank=7))
    except WorkerFailed as e:
        error = e
    return received.content.partition(b"\r\n\r\n")[2], error


@pytest.mark.parametrize("event", FAILED.values(), ids=FAILED)
async def test_error_of_engine_is_raised_after_the_events_before(event: bytes) -> None:
    for pieces in ([TEXT, event], [TEXT + event], [TEXT + event[:15], event[15:]]):
        content, error = await relayed(*pieces)
        assert content == TEXT
        assert error
        assert error.rank == 7
        assert "dead" in str(error)


async def test_error_that_the_request_causes_is_relayed() -> None:
    assert await relayed(TEXT, REFUSED) == (TEXT + REFUSED, None)


async def test_text_that_looks_like_an_error_is_relayed() -> None:
    assert await relayed(TEXT, HARMLESS, TEXT) == (TEXT + HARMLESS + TEXT, None)


class Unread(Received):
    """Transport of a client that does not read."""

    async def wait_writable(self) -> None:
        await asyncio.Event().wait()


async def test_long_response_waits_for_its_client() -> None:
    """Four responses of 200 MB to clients that did not read took 1.3 GB for five minutes."""

    async def embeddings(request: HttpRequest, response: ResponseWriter) -> None:
        response.send(200, b"[%b]" % (b"1," * MAX_WHOLE_BYTES + b"1"), [JSON])

    async def big(client: HttpClient, url: str, own: ResponseWriter) -> None:
        relay = ResponseRelay(own, FrontendStats(), None)
        lease = placeholder_lease(rank=7)
        async with client.send("POST", url, "/v1/embeddings") as answer:
            await relay.receive(CheckedResponse(answer, "/v1/embeddings", stream=False), lease)

    async with asyncio.timeout(60), HttpServer(embeddings) as server, HttpClient() as client:
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        unread, read = Unread(congested=True), Received()
        writers = [
            ResponseWriter(each, keep_alive=True, http10=True, head_only=False)
            for each in (unread, read)
        ]
        waiting = asyncio.create_task(big(client, url, writers[0]))
        await big(client, url, writers[1])
        assert read.content.endswith(b"1,1]")
        assert len(read.content) > 2 * MAX_WHOLE_BYTES
        assert len(unread.content) < MAX_WHOLE_BYTES
        waiting.cancel()


async def test_events_arrive_whole_whatever_the_pieces() -> None:
    stream = TEXT + b'data: {"a": 1}\n\r\n' + TEXT.replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"
    for size in range(1, 9):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert await relayed(*pieces) == (stream, None)
        content, error = await relayed(*pieces, b"data: {", b'"error": {"code": 500}}\n', b"\n")
        assert content == stream
        assert error


async def test_long_event_takes_linear_time() -> None:
    """An event of 50 MB took more than 30 s, for which the head killed the frontend."""
    content, error = await relayed(b'data: "', *[b"x" * 1000] * 50_000, b'"\n', b"\n" + TEXT)
    assert (len(content), error) == (50_000_010 + len(TEXT), None)


def test_long_event_ends_the_record() -> None:
    record = StreamRecord()
    for event in (b"x" * (MAX_EVENT_BYTES + 1), b"y"):
        record.append(event)
    assert record.content() is None
    kept = StreamRecord()
    for event in (b"x" * (MAX_EVENT_BYTES // 2), b"y"):
        kept.append(event)
    assert kept.content() == b"x" * (MAX_EVENT_BYTES // 2) + b"y"
