"""Response of a server, as it arrives on a connection."""

import asyncio
import sys
from collections import deque
from contextlib import suppress
from typing import Protocol, cast

import httptools

LAST_PIECES = 16
MAX_HEAD_BYTES = 1 << 18
MAX_REPORT_BYTES = 16 << 20  # metrics and other reports of engines are shorter


class ByteSink(Protocol):
    """Destination of a relayed body; see `HttpResponse.relay`."""

    def write(self, data: bytes) -> None:
        """Take a piece. What it raises ends the relay, which raises it as well."""

    @property
    def congested(self) -> bool: ...

    async def drain(self) -> None: ...


class _StartComplete(Exception):
    """Ends a relay."""


class _Start:
    """ByteSink for the first bytes of a body."""

    congested = False

    def __init__(self, size: int) -> None:
        self.content, self._size = bytearray(), size

    def write(self, data: bytes) -> None:
        self.content += data
        if len(self.content) > self._size:
            raise _StartComplete

    async def drain(self) -> None: ...


class HttpResponse(asyncio.Protocol):
    """One connection, and the response that arrives on it.

    Valid until the end of the `async with` block that returned it. Header names are in lower case.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._changed: asyncio.Future[None] | None = None
        self._error: ConnectionError | None = None
        self._sink: ByteSink | None = None
        self._sink_error: Exception | None = None
        self.used = False  # an earlier response arrived on this connection
        self._prepare()

    def _prepare(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers = 0, dict[str, str]()
        self._head_received = self._complete = self._keep_alive = False
        self._body = list[bytes]()
        self._last_pieces = deque[bytes](maxlen=LAST_PIECES)
        self._received, self._max_bytes = 0, sys.maxsize

    async def first_piece(self) -> bytes:
        """Return the start of the body, once there is some; empty if the body is. `relay` and
        `read` still return it."""
        while not (self._body or self._complete):
            await self._wait_for_change()
        return self._body[0] if self._body else b""

    @property
    def tail(self) -> bytes:
        """The end of a body that was relayed: its last LAST_PIECES pieces."""
        return b"".join(self._last_pieces)

    async def read(self, max_bytes: int = sys.maxsize) -> bytes:
        """Return the whole body. Raises ConnectionError if the response has more than `max_bytes`,
        to within one piece; then the rest is not received."""
        self._max_bytes = max_bytes
        while not self._complete:
            await self._wait_for_change()
        return b"".join(self._body)

    async def read_start(self, max_bytes: int) -> bytes:
        """Return the body, or its first `max_bytes`. Then the rest is not received."""
        start = _Start(max_bytes)
        with suppress(_StartComplete):
            await self.relay(start)
        return bytes(start.content[:max_bytes])

    async def relay(self, sink: ByteSink) -> None:
        """Write the body to `sink` piece by piece as it arrives, without waking a task per piece.

        A congested sink pauses reading, which in the end pauses the server's writing. Raises what
        the sink raises.
        """
        self._sink = sink
        if self._body:
            sink.write(b"".join(self._body))
            self._last_pieces.extend(self._body)
            self._body.clear()
        while not (self._complete or self._sink_error):
            if sink.congested:
                self._transport.pause_reading()
                await sink.drain()
                self._transport.resume_reading()
            else:
                await self._wait_for_change()
        if self._sink_error:
            raise self._sink_error

    @property
    def reusable(self) -> bool:
        """Return True if the connection can carry another request."""
        return self._complete and self._keep_alive and not self._transport.is_closing()

    # Called by HttpClient.

    def start(self, request: bytes) -> None:
        """Send a request and reset the response."""
        self._sink = self._sink_error = None
        self._prepare()
        self._transport.write(request)

    async def wait_for_head(self) -> None:
        while not self._head_received:
            await self._wait_for_change()

    def keep(self) -> None:
        """Drop the response. The connection stays open for another request."""
        self.used, self._sink = True, None
        self._body.clear()
        self._last_pieces.clear()

    def abort(self) -> None:
        self._transport.abort()

    @property
    def nothing_received(self) -> bool:
        return not self._received

    async def _wait_for_change(self) -> None:
        if self._error:
            raise self._error
        self._changed = asyncio.get_running_loop().create_future()
        try:
            await self._changed
        finally:
            self._changed = None
        if self._error and not self._complete:
            raise self._error

    def _wake(self) -> None:
        if self._changed and not self._changed.done():
            self._changed.set_result(None)

    # Called by the transport and the parser.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is not a subclass of asyncio.Transport, but has its interface.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what the server sent."""
        if self._complete:  # an answer to no request: the next request must not get it
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._fail(f"the response is not HTTP/1.1: {e}")
        self._received += len(data)
        limit = self._max_bytes if self._head_received else MAX_HEAD_BYTES
        if self._received > limit and not self._complete:
            self._fail(f"the response has more than {limit} bytes")

    def _fail(self, what: str) -> None:
        self._error = self._error or ConnectionError(what)
        self._transport.abort()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        # Without these headers the end of the connection is the end of the body.
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self._head_received and not (error or self._error or framed):
            self._complete = True
        self._error = self._error or ConnectionResetError("the server closed the connection")
        self._wake()

    def on_message_begin(self) -> None:
        if self._complete:  # the parser raises it in data_received
            raise ConnectionError("a second answer to one request")

    def on_status(self, reason: bytes) -> None:
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_received = self.status >= 200
        if self._head_received:
            self._wake()

    def on_body(self, part: bytes) -> None:
        """Write to the sink, or keep the piece and wake a reader for the first."""
        if self._sink is None:
            if not self._body:
                self._wake()
            self._body.append(part)
        elif not self._sink_error:
            self._last_pieces.append(part)
            self._write(self._sink, part)

    def _write(self, sink: ByteSink, part: bytes) -> None:
        try:
            sink.write(part)
        except Exception as e:  # noqa: BLE001  # raised by `relay`, which awaits the end
            self._sink_error = e
            self._wake()
        else:
            if sink.congested:
                self._wake()

    def on_message_complete(self) -> None:
        if not self._head_received:  # an interim (1xx) response
            self.status, self.headers = 0, {}
            return
        self._complete, self._keep_alive = True, self._parser.should_keep_alive()
        self._wake()
