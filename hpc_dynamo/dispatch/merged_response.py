"""Answers to the single requests of a fan-out, and the merged answer."""

import asyncio
from collections.abc import Sequence

import msgspec

from hpc_dynamo.dispatch.merge import EventMerger, merge
from hpc_dynamo.dispatch.worker_client import BufferedResponse, IncomingResponse, ResponseSink
from hpc_dynamo.engine_errors import parse_engine_error
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import ByteSink
from hpc_dynamo.router import Lease, LeaseEvent, Target

EVENTS = "text/event-stream"
CHUNKS_PER_REPORT = 64  # a note to the router costs as much as forwarding a few pieces
FOREIGN = (msgspec.DecodeError, KeyError)  # for data of another kind than a completion or chat


class _Usage(msgspec.Struct):
    completion_tokens: int | None = 0


class BufferedSample(BufferedResponse):
    """Keeps a whole answer and reports its length to the router."""

    async def receive(self, answer: IncomingResponse, lease: Lease) -> None:
        await super().receive(answer, lease)
        usage = msgspec.json.decode(self.body.get("usage", b"null"), type=_Usage | None)
        if usage and usage.completion_tokens:
            lease.report_progress(usage.completion_tokens)


class MergedResponse:
    """Merged answer of requests that were not streamed."""

    def __init__(self, parts: Sequence[BufferedResponse]) -> None:
        """Raises RequestFailed if a part is not an answer to a completion or chat."""
        self.headers = {"content-type": "application/json"}
        self._rank = parts[0].rank
        try:
            self._content = merge([part.body for part in parts])
        except FOREIGN as e:
            raise _foreign(e) from e

    async def deliver(self, taker: ResponseSink) -> None:
        await taker.receive(self, _lease_of_nothing(self._rank))

    async def read(self) -> bytes:
        return self._content

    async def relay(self, sink: ByteSink) -> None:
        sink.write(self._content)


class MergedStream:
    """Merged stream; events of its `parts` are sent as they arrive."""

    def __init__(self, samples: int) -> None:
        self.headers = {"content-type": f"{EVENTS}; charset=utf-8"}
        self.sample_streams = [SampleStream(self, sample) for sample in range(samples)]
        self.merger = EventMerger(samples)
        self._open = samples
        self._complete = asyncio.Event()
        self.sink: ByteSink

    async def deliver(self, taker: ResponseSink) -> None:
        """Send the stream; return when all parts are complete. Start it before data arrives."""
        await taker.receive(self, _lease_of_nothing())

    async def relay(self, sink: ByteSink) -> None:
        self.sink = sink
        await self._complete.wait()

    async def read(self) -> bytes:
        kept = _Kept()
        await self.relay(kept)
        return bytes(kept.content)

    def sample_complete(self) -> None:
        self._open -= 1
        if not self._open:
            self.sink.write(self.merger.closing())
            self._complete.set()


class SampleStream:
    """Receives the stream of one sample. See Taker and http.Sink."""

    def __init__(self, stream: MergedStream, sample: int) -> None:
        self._stream, self._sample = stream, sample
        self._error: RequestFailed | None = None
        self._pieces = 0  # not yet reported to the router
        self._lease: Lease
        self.started = False

    async def receive(self, answer: IncomingResponse, lease: Lease) -> None:
        if not answer.headers.get("content-type", "").startswith(EVENTS):
            raise RequestFailed("the engine answered a streamed request with no stream", status=502)
        self._lease = lease
        await answer.relay(self)
        if self._error:
            raise self._error
        lease.report_progress(self._pieces)
        self._stream.sample_complete()

    def write(self, data: bytes) -> None:
        """Merge a piece of the stream. Never raises: errors are raised by `drain` and `take`."""
        if self._error:
            return
        if not self.started:
            self.started = True
            self._lease.report_first_token()
        try:
            events, error = self._stream.merger.feed(self._sample, data)
        except FOREIGN as e:
            self._error = _foreign(e)
            return
        if events:
            self._stream.sink.write(events)
        if error:
            self._error = RequestFailed(_message(error), status=500, body=error)
        self._count()

    def _count(self) -> None:
        self._pieces += 1
        if self._pieces == CHUNKS_PER_REPORT:
            self._lease.report_progress(self._pieces)
            self._pieces = 0

    @property
    def congested(self) -> bool:
        return self._error is not None or self._stream.sink.congested

    async def drain(self) -> None:
        if self._error:
            raise self._error
        await self._stream.sink.drain()


class _Kept:
    """Sink that keeps everything."""

    congested = False

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data

    async def drain(self) -> None:
        pass


class _Silent:
    """See router.scheduling.lease.LeaseListener: not used, since each part has its own lease."""

    def on_lease_event(self, lease: int, event: LeaseEvent, value: int) -> None:
        pass


def _lease_of_nothing(rank: int = -1) -> Lease:
    """Return a placeholder lease for the taker of a merged answer."""
    return Lease(0, None, Target(rank, ""), _Silent())


def _foreign(error: Exception) -> RequestFailed:
    return RequestFailed(f"an answer that cannot be merged with others: {error!r}", status=502)


def _message(error: bytes) -> str:
    """Return the message of an engine's error event, in OpenAI's nested form or flat."""
    return parse_engine_error(error).message or "the engine ended the stream with an error"
