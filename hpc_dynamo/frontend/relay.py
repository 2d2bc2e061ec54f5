"""Relays a worker's response to the client: streams and long responses as they arrive, other
responses whole."""

import re
import time
from collections.abc import Callable, Mapping

import msgspec

from hpc_dynamo.dispatch import IncomingResponse, StreamRecord, stream_error
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.frontend.token_gaps import TokenGaps
from hpc_dynamo.http import ResponseWriter
from hpc_dynamo.router import Lease

# Ten clients that do not read could otherwise fill the memory with embeddings of 200 MB each.
MAX_WHOLE_BYTES = 8 << 20
# A report to the router costs as much as relaying a few chunks.
CHUNKS_PER_REPORT = 64
EVENTS = b"text/event-stream"
SEPARATORS = (b"\n\n", b"\n\r\n")  # empty lines end events
# Engines report a failure in a stream like this. Texts in JSON have neither these quotes nor lines.
ERROR_LINE = b'data: {"error"'
ERROR = re.compile(rb'^(?:data: \{"error"|event: error\b)', re.MULTILINE)


class ResponseRelay:
    """Relays bytes unchanged and counts tokens. See dispatch.StreamSink and http.ByteSink.

    A stream with a `record` is relayed in whole events. An engine's error in it is raised, so that
    another worker may continue the stream.
    """

    def __init__(
        self,
        response: ResponseWriter,
        stats: FrontendStats,
        record: StreamRecord | None = None,
        on_start: Callable[[bytes, int], None] | None = None,
        choices: int = 1,
    ) -> None:
        """`on_start` gets the first bytes of the response, and the rank of its worker. `choices`
        is the number of answers in it."""
        self._response, self._stats, self.record = response, stats, record
        self._started_at = self._last_chunk_at = time.monotonic()
        self._on_start = on_start
        self._content_type = b"application/json"
        self._gaps, self._unreported, self._reported = TokenGaps(choices), 0, 0  # pieces
        self.last_piece = b""
        self._partial = list[bytes]()  # pieces of an event that is not complete
        self._lease: Lease
        self.ends_with_error = True  # a failed response can end with an error event

    @property
    def started(self) -> bool:
        return self._response.status != 0

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        """Relay the response; return when it is complete. Raises WorkerFailed."""
        self._lease = lease
        self._partial.clear()
        self._content_type = response.headers.get("content-type", "application/json").encode()
        if self._content_type.startswith(EVENTS):
            try:
                await response.relay(self)
            finally:
                self._report_tokens()
            if self._partial:
                self._response.write(b"".join(self._partial))
            if not self.started:
                self._begin()
            self._response.end()
        elif length(response.headers) > MAX_WHOLE_BYTES:
            await self._relay_long(response)
        else:
            content = await response.read()
            self._stats.ttft.observe(time.monotonic() - self._started_at)
            if tokens := _generated_tokens(content):
                lease.report_progress(tokens)
            self._report_start(content)
            self._response.send(200, content, [(b"content-type", self._content_type)])

    async def _relay_long(self, response: IncomingResponse) -> None:
        """Relay a response of which only the head was checked."""
        self.ends_with_error = False
        self._response.begin(200, [(b"content-type", self._content_type)])
        self._lease.report_first_token()
        self._stats.ttft.observe(time.monotonic() - self._started_at)
        await response.relay(self._response)
        self._response.end()

    def write(self, data: bytes) -> None:
        """Relay a piece of a stream. Raises WorkerFailed."""
        if self.record is not None:
            if self._partial or not data.endswith(b"\n\n"):
                data = self._whole_events(data)
            # Most pieces are one line, of which a look at its start is enough.
            one_line = data.find(b"\n") == len(data) - 2
            if data.startswith(ERROR_LINE) if one_line else b"error" in data:
                self._relay_until_error(data)
                return
        self._relay(data)

    def _relay_until_error(self, data: bytes) -> None:
        """Relay what precedes an error, and raise it. Relay all if the request is the cause."""
        start = found.start() if (found := ERROR.search(data)) else len(data)
        error = stream_error(self._lease.decode.rank, data[start:]) if found else None
        self._relay(data[:start] if error else data)
        if error:
            raise error

    def _relay(self, data: bytes) -> None:
        if not data:
            return
        if self.record is not None:
            self.record.append(data)
        now = time.monotonic()
        if self._response.status:
            self._gaps.add(now - self._last_chunk_at, data)
            self._unreported += 1
            if self._unreported == CHUNKS_PER_REPORT:
                self._lease.report_progress(self._unreported)
                self._reported += self._unreported
                self._unreported = 0
        else:
            self._gaps.add(None, data)
            self._begin()
            self._report_start(data)
            self._lease.report_first_token()
            self._stats.ttft.observe(now - self._started_at)
        self._last_chunk_at = now
        self.last_piece = data
        self._response.write(data)

    def _report_tokens(self) -> None:
        """Count the tokens of this worker. Until here each piece was reported as one."""
        more = self._gaps.take(self._stats.itl) - self._reported
        self._unreported = self._reported = 0
        if more > 0:
            self._lease.report_progress(more)

    def _whole_events(self, data: bytes) -> bytes:
        """Return the events that are complete with this piece, and keep the rest."""
        # An empty line may begin in the last piece. An event may have megabytes in many pieces.
        before = b"".join(self._partial[-2:])[-2:]
        searched, end = before + data, 0
        for separator in SEPARATORS:
            at = searched.rfind(separator, end)  # searches only the rest for the rare one
            end = at + len(separator) if at >= 0 else end
        if not end:
            self._partial.append(data)
            return b""
        end -= len(before)
        whole = b"".join([*self._partial, data[:end]])
        self._partial = [data[end:]] if end < len(data) else []
        return whole

    @property
    def congested(self) -> bool:
        return self._response.congested

    async def drain(self) -> None:
        await self._response.drain()

    def _report_start(self, data: bytes) -> None:
        if self._on_start:
            self._on_start(data, self._lease.decode.rank)

    def _begin(self) -> None:
        headers = [(b"content-type", self._content_type), (b"cache-control", b"no-cache")]
        self._response.begin(200, headers)


def length(headers: Mapping[str, str]) -> int:
    """Return the length of a response; 0 if its head does not give it."""
    value = headers.get("content-length", "")[:18]
    return int(value) if value.isdecimal() else 0


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
