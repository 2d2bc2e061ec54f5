"""The client's stream while another worker continues it."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from hpc_dynamo.dispatch.merged_response import placeholder_lease
from hpc_dynamo.dispatch.stream_record import StreamRecord
from hpc_dynamo.dispatch.worker_client import IncomingResponse, ResponseSink
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import ByteSink
from hpc_dynamo.http.sse import MEDIA_TYPE
from hpc_dynamo.router import Lease

# Raised for events that are not chunks of a completion or chat.
CHUNK_ERRORS = (msgspec.DecodeError, AttributeError, KeyError, TypeError, ValueError)


class StreamSink(ResponseSink, Protocol):
    """Receives a stream. `record` is what the client has of it, None for other responses."""

    @property
    def record(self) -> StreamRecord | None: ...


class Converter(Protocol):
    """Converts the events of a continuation for the client."""

    def feed(self, piece: bytes) -> bytes: ...


class ContinuedStream:
    """ResponseSink of a continuation. Its converted events go to `sink`.

    `started` is False until the first of them.
    """

    def __init__(self, sink: ResponseSink, converter: Converter) -> None:
        self._sink, self._converter = sink, converter
        self.started = False

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        """Forward the stream. Raises RequestFailed if it does not continue the client's."""
        if not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
            raise RequestFailed("the engine answered a continuation without a stream", status=502)
        await self._sink.receive(_ConvertedResponse(response, self, lease), lease)

    def convert(self, piece: bytes) -> bytes:
        """Return the events for the client. Raises RequestFailed."""
        try:
            events = self._converter.feed(piece)
        except CHUNK_ERRORS as e:
            what = f"the engine's stream is not readable: {e!r}"
            raise RequestFailed(what, status=502) from e
        self.started = self.started or bool(events)
        return events


class _ConvertedResponse:
    """IncomingResponse whose events are converted."""

    def __init__(self, response: IncomingResponse, stream: ContinuedStream, lease: Lease) -> None:
        self._response, self._stream, self._lease = response, stream, lease
        self.headers = response.headers

    async def read(self) -> bytes:
        return self._stream.convert(await self._response.read())

    async def relay(self, sink: ByteSink) -> None:
        await self._response.relay(_ConvertedPieces(self._stream, self._lease, sink))


class _ConvertedPieces:
    """ByteSink that converts pieces of a stream."""

    def __init__(self, stream: ContinuedStream, lease: Lease, sink: ByteSink) -> None:
        self._stream, self._lease, self._sink = stream, lease, sink
        self._first = True
        self.drain = sink.drain

    def write(self, data: bytes) -> None:
        if self._first:
            self._first = False
            self._lease.report_first_token()
        if events := self._stream.convert(data):
            self._sink.write(events)

    @property
    def congested(self) -> bool:
        return self._sink.congested


class _Prepared:
    """IncomingResponse with content that no engine sends."""

    def __init__(self, content: bytes) -> None:
        self.headers: Mapping[str, str] = {"content-type": MEDIA_TYPE}
        self._content = content

    async def read(self) -> bytes:
        return self._content

    async def relay(self, sink: ByteSink) -> None:
        sink.write(self._content)


async def send_prepared(content: bytes, sink: ResponseSink) -> None:
    """Send the rest of a stream that needs no worker any more."""
    await sink.receive(_Prepared(content), placeholder_lease())
