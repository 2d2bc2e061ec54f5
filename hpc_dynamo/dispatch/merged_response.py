"""Responses to the single requests of a fan-out, and the merged response."""

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
# A report to the router costs as much as forwarding a few chunks.
CHUNKS_PER_REPORT = 64
# Raised by `merge` for data that is not a completion or chat.
MERGE_ERRORS = (msgspec.DecodeError, KeyError)


class _Usage(msgspec.Struct):
    """Field of a response that is read here."""

    completion_tokens: int | None = 0


class BufferedSample(BufferedResponse):
    """Buffers the response to one sample and reports its length to the router."""

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        await super().receive(response, lease)
        usage = msgspec.json.decode(self.body.get("usage", b"null"), type=_Usage | None)
        if usage and usage.completion_tokens:
            lease.report_progress(usage.completion_tokens)


class MergedResponse:
    """Merged response to requests that are not streamed. See worker_client.IncomingResponse."""

    def __init__(self, samples: Sequence[BufferedResponse]) -> None:
        """Raises RequestFailed if a sample is not a response to a completion or chat."""
        self.headers = {"content-type": "application/json"}
        self._rank = samples[0].rank
        try:
            self._content = merge([sample.body for sample in samples])
        except MERGE_ERRORS as e:
            raise _merge_error(e) from e

    async def deliver(self, sink: ResponseSink) -> None:
        await sink.receive(self, placeholder_lease(self._rank))

    async def read(self) -> bytes:
        return self._content

    async def relay(self, sink: ByteSink) -> None:
        sink.write(self._content)


class MergedStream:
    """Merged stream; sends events of `sample_streams` as they arrive."""

    def __init__(self, samples: int) -> None:
        self.headers = {"content-type": f"{EVENTS}; charset=utf-8"}
        self.sample_streams = [SampleStream(self, sample) for sample in range(samples)]
        self.merger = EventMerger(samples)
        self._incomplete = samples
        self._complete = asyncio.Event()
        self.sink: ByteSink

    async def deliver(self, sink: ResponseSink) -> None:
        """Send the stream; return when all samples are complete. Call it before data arrives."""
        await sink.receive(self, placeholder_lease())

    async def relay(self, sink: ByteSink) -> None:
        self.sink = sink
        await self._complete.wait()

    async def read(self) -> bytes:
        buffer = _BufferSink()
        await self.relay(buffer)
        return bytes(buffer.content)

    def sample_complete(self) -> None:
        self._incomplete -= 1
        if not self._incomplete:
            self.sink.write(self.merger.closing())
            self._complete.set()


class SampleStream:
    """Receives the stream of one sample. See ResponseSink and ByteSink."""

    def __init__(self, stream: MergedStream, sample: int) -> None:
        self._stream, self._sample = stream, sample
        self._chunks = 0  # not yet reported to the router
        self._lease: Lease
        self.started = False

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        """Forward the stream. Raises RequestFailed if it has an error or is not a stream."""
        if not response.headers.get("content-type", "").startswith(EVENTS):
            what = "the engine answered a streaming request without a stream"
            raise RequestFailed(what, status=502)
        self._lease = lease
        await response.relay(self)
        lease.report_progress(self._chunks)
        self._stream.sample_complete()

    def write(self, data: bytes) -> None:
        """Merge a piece of the stream. Raises RequestFailed."""
        if not self.started:
            self.started = True
            self._lease.report_first_token()
        try:
            events, error = self._stream.merger.feed(self._sample, data)
        except MERGE_ERRORS as e:
            raise _merge_error(e) from e
        if events:
            self._stream.sink.write(events)
        if error:
            message = parse_engine_error(error).message
            message = message or "the engine ended the stream with an error"
            raise RequestFailed(message, status=500, body=error)
        self._count()

    def _count(self) -> None:
        self._chunks += 1
        if self._chunks == CHUNKS_PER_REPORT:
            self._lease.report_progress(self._chunks)
            self._chunks = 0

    @property
    def congested(self) -> bool:
        return self._stream.sink.congested

    async def drain(self) -> None:
        await self._stream.sink.drain()


class _BufferSink:
    """ByteSink that keeps all data."""

    congested = False

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data

    async def drain(self) -> None:
        pass


class _IgnoringListener:
    """LeaseListener without effect, since each sample has its own lease."""

    def on_lease_event(self, lease: int, event: LeaseEvent, value: int) -> None:
        pass


def placeholder_lease(rank: int = -1) -> Lease:
    """Return a lease without effect for the sink of a merged response."""
    return Lease(0, None, Target(rank, ""), _IgnoringListener())


def _merge_error(error: Exception) -> RequestFailed:
    return RequestFailed(f"the engine's response cannot be merged: {error!r}", status=502)
