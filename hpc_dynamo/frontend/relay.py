"""Relays a worker's response to the client: streams piece by piece, other responses whole."""

import time

import msgspec

from hpc_dynamo.dispatch import IncomingResponse
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import ResponseWriter
from hpc_dynamo.router import Lease

# A report to the router costs as much as relaying a few chunks.
CHUNKS_PER_REPORT = 64


class ResponseRelay:
    """Relays bytes unchanged and counts tokens. See dispatch.ResponseSink and http.ByteSink."""

    def __init__(self, response: ResponseWriter, stats: FrontendStats) -> None:
        self._response, self._stats = response, stats
        self._started_at = self._last_chunk_at = time.monotonic()
        self._content_type = b"application/json"
        self._chunks = 0  # not yet reported to the router
        self._lease: Lease

    @property
    def started(self) -> bool:
        return self._response.status != 0

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        """Relay the response; return when it is complete."""
        self._lease = lease
        self._content_type = response.headers.get("content-type", "application/json").encode()
        if self._content_type.startswith(b"text/event-stream"):
            await response.relay(self)
            if not self.started:
                self._begin()
            if self._chunks:
                lease.report_progress(self._chunks)
            self._response.end()
        else:
            content = await response.read()
            self._stats.ttft.observe(time.monotonic() - self._started_at)
            if tokens := _generated_tokens(content):
                lease.report_progress(tokens)
            self._response.send(200, content, [(b"content-type", self._content_type)])

    def write(self, data: bytes) -> None:
        """Relay a piece of a stream. Each counts as one token, while the client keeps up."""
        now = time.monotonic()
        if self._response.status:
            self._stats.itl.observe(now - self._last_chunk_at)
            self._chunks += 1
            if self._chunks == CHUNKS_PER_REPORT:
                self._lease.report_progress(self._chunks)
                self._chunks = 0
        else:
            self._begin()
            self._lease.report_first_token()
            self._stats.ttft.observe(now - self._started_at)
        self._last_chunk_at = now
        self._response.write(data)

    @property
    def congested(self) -> bool:
        return self._response.congested

    async def drain(self) -> None:
        await self._response.drain()

    def _begin(self) -> None:
        headers = [(b"content-type", self._content_type), (b"cache-control", b"no-cache")]
        self._response.begin(200, headers)


class _TokenUsage(msgspec.Struct):
    """Token counts of a response."""

    completion_tokens: int = 0
    output_tokens: int = 0  # name in /v1/responses and /v1/messages


class _Response(msgspec.Struct):
    """Fields of a response that are read here."""

    usage: _TokenUsage | None = None


_RESPONSE = msgspec.json.Decoder(_Response)


def _generated_tokens(content: bytes) -> int:
    """Return the generated tokens of a whole response; 0 if it has no usage."""
    try:
        usage = _RESPONSE.decode(content).usage
    except (msgspec.DecodeError, RecursionError):
        return 0
    return usage.completion_tokens or usage.output_tokens if usage else 0
