"""Server side of one connection: parses requests and passes them to the handler one at a time."""

import asyncio
import logging
import math
import time
from collections import deque
from functools import partial
from typing import cast

import httptools

from hpc_dynamo.defects import contain_defects, contain_defects_of, report_defect
from hpc_dynamo.http.connection_table import Closable
from hpc_dynamo.http.exchange import INTERNAL_ERROR, HttpRequest, Rejection, ResponseWriter
from hpc_dynamo.http.request_head import add_header, head_without_upgrade, pieces, request_line
from hpc_dynamo.http.server_context import ServerContext

LINGER_S = 2.0  # a rejected client stops sending; closing earlier could discard the response
WRITE_BUFFER_BYTES = 1 << 18  # unsent bytes of a stream above which its writer waits

log = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """Connection of one client, `opening` in the table until it is made. Reads ahead while a
    request is served, to detect a disconnect."""

    def __init__(self, context: ServerContext, opening: Closable) -> None:
        self._context, self._limits, self._opening = context, context.limits, opening
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._peer, self._headers = "", dict[str, str]()
        # Item, keep-alive, HTTP/1.0
        self._pending = deque[tuple[HttpRequest | Rejection, bool, bool]]()
        self._input = deque[bytes]()  # not parsed, because enough requests are pending
        self._task: asyncio.Task[None] | None = None
        self._buffered_bytes = 0  # bodies of this connection's requests
        self._reading = False  # in the middle of a request
        self._closing = self._ignoring_input = False  # closes once idle; reads no more
        self._unparsed_bytes = 0  # received since the last head, piece of a body, or request
        self._state_since = self.opened_at = time.monotonic()
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed = asyncio.get_running_loop().create_future()

    # Called by the transport, then by the parser.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection to those of the server."""
        # uvloop's transport is not a subclass of asyncio.Transport, but has its interface.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._peer = str((transport.get_extra_info("peername") or ["?"])[0])
        self._context.connections.replace(self._opening, self)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        if not self._ignoring_input:
            self._input.extend(pieces(data, self._limits.pipelined))
            self._parse_input()

    def _parse_input(self) -> None:
        while self._input and not self._ignoring_input and self._has_room:
            data = self._input.popleft()
            self._unparsed_bytes += len(data)
            try:
                self._parser.feed_data(data)
                # The parser collects a header or a trailer silently until it is complete.
                if self._unparsed_bytes > self._limits.header_bytes:
                    self._reject(431, f"the headers exceed {self._limits.header_bytes} bytes")
            except httptools.HttpParserUpgrade as e:
                self._decline_upgrade(data[e.args[0] :])
            except httptools.HttpParserCallbackError as e:
                report_defect(log, ("a request of", self._peer), e.__context__ or e)
                self._reject(500, INTERNAL_ERROR)
            except httptools.HttpParserError as e:
                self._reject(400, f"this is not HTTP/1.1: {e}")

    def _decline_upgrade(self, rest: bytes) -> None:
        """Parse a request that offers an upgrade, such as HTTP/2, again without the offer."""
        if self._parser.get_method() == b"CONNECT":
            self._reject(400, "this server is not a proxy")
            return
        head = head_without_upgrade(self._parser.get_method(), self._target, self._headers)
        self._parser = httptools.HttpRequestParser(self)
        self._input.appendleft(head + rest)

    def connection_lost(self, error: Exception | None) -> None:
        """Release the buffers and cancel the handler."""
        self._ignoring_input = True
        self._context.connections.discard(self)
        self._buffer(-self._buffered_bytes)
        self._pending.clear()
        self._input.clear()
        self._writable.set()
        if self._task:
            self._task.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()
        self._state_since = time.monotonic()

    def resume_writing(self) -> None:
        self._writable.set()

    def on_message_begin(self) -> None:
        self._target, self._headers, self._head_bytes = b"", dict[str, str](), 0
        self._body = bytearray()
        self._reading, self._state_since = True, time.monotonic()

    def on_url(self, part: bytes) -> None:
        self._target += part
        self._count_head(len(part))
        if not part.isascii():
            self._reject(400, "the path has characters other than ASCII; escape them")

    def on_header(self, name: bytes, value: bytes) -> None:
        header = name.decode("latin-1").lower()
        if not add_header(self._headers, header, value.decode("latin-1")):
            self._reject(400, f"the header {header} was sent more than once")
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Check the key and the announced size before any of the body is read."""
        if self._ignoring_input:
            return
        self._unparsed_bytes = 0
        length = self._headers.get("content-length", "0")
        if self._context.has_key and not self._context.has_key(self._headers):
            if length != "0" or "transfer-encoding" in self._headers:
                # The handler answers a client without a key; nothing more is read from it.
                self._ignoring_input = True
                self._queue_request(keep_alive=False)
            return
        self._context.connections.set_busy(self)
        if length.isdecimal():
            self._check_body(int(length))
        if self._headers.get("expect", "").lower() == "100-continue" and self._idle:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        if self._ignoring_input:
            return
        self._unparsed_bytes = 0
        self._body += part
        self._buffer(len(part))
        self._check_body(len(self._body))

    def on_message_complete(self) -> None:
        """Queue the request for the handler."""
        if self._ignoring_input or self._parser.should_upgrade():
            return
        self._unparsed_bytes = 0
        self._queue_request(keep_alive=self._parser.should_keep_alive())

    def _queue_request(self, *, keep_alive: bool) -> None:
        self._reading, self._state_since = False, time.monotonic()
        method, path, query = request_line(self._parser.get_method(), self._target)
        body, self._body = bytes(self._body), bytearray()
        request = HttpRequest(method, path, query, self._headers, body, self._peer)
        self._pending.append((request, keep_alive, self._parser.get_http_version() != "1.1"))
        if not self._has_room:
            self._transport.pause_reading()
        self._next()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self._reject(431, f"the headers exceed {self._limits.header_bytes} bytes")

    def _check_body(self, size: int) -> None:
        buffered = self._context.buffered_bytes + size - len(self._body)
        if size > self._limits.body_bytes:
            self._reject(413, f"the body exceeds {self._limits.body_bytes} bytes")
        elif buffered > self._limits.buffered_bytes:
            self._reject(429, "the bodies of the requests in progress fill this server's memory")

    def _buffer(self, size: int) -> None:
        self._buffered_bytes += size
        self._context.buffered_bytes += size

    def _reject(self, status: int, message: str) -> None:
        """Queue an error response, and ignore everything that the client sends after this."""
        if not self._ignoring_input:
            self._ignoring_input, self._reading = True, False
            self._state_since = time.monotonic()
            self._context.connections.rejections[str(status)] += 1
            self._pending.append((Rejection(status, message), False, False))
            self._next()

    def check_timeouts(self, now: float) -> None:
        """Close the connection, or reject its request, if the client is too slow."""
        age, limits = now - self._state_since, self._limits
        anonymous_s = math.inf if self._context.connections.has_key(self) else limits.anonymous_s
        receive_s = min(limits.receive_s, anonymous_s)
        if self._task:
            if not self._writable.is_set() and age > min(limits.stalled_s, anonymous_s):
                log.info("%s does not read its response; the connection is closed", self._peer)
                self.abort()
        elif self._ignoring_input:
            if age > LINGER_S:
                self.abort()
        elif self._reading:
            if age > receive_s:
                self._reject(408, f"no complete request within {receive_s:.0f} s")
        elif age > min(limits.idle_s, anonymous_s):
            unsent = self._transport.get_write_buffer_size()  # for which `close` would wait
            self.abort() if unsent else self._transport.close()

    @property
    def serving(self) -> bool:
        """Return True while the handler works on a request of this connection."""
        return self._task is not None

    @property
    def _idle(self) -> bool:
        return self._task is None and not self._pending

    @property
    def _has_room(self) -> bool:
        return len(self._pending) <= self._limits.pipelined

    def _next(self) -> None:
        if self._task is None and self._pending:
            item, keep_alive, http10 = self._pending.popleft()
            if isinstance(item, Rejection):
                self._send_rejection(item)
            else:
                # A client that waits for a connection gets the place of this one.
                kept = keep_alive and not (self._closing or self._context.connections.awaited)
                serve, what = partial(self._serve, item, kept, http10), (item.method, item.path)
                contained = contain_defects_of(serve, log, what, then=self.abort)
                self._task = self._context.tasks.create_task(contained)

    async def _serve(self, request: HttpRequest, keep_alive: bool, http10: bool) -> None:
        response = ResponseWriter(
            self, keep_alive=keep_alive, http10=http10, head_only=request.method == "HEAD"
        )
        with contain_defects(log, (request.method, request.path)):
            await self._context.handler(request, response)
        if not response.status:
            error = self._context.format_error(500, INTERNAL_ERROR, request.headers)
            response.send(500, *error)
        self._buffer(-len(request.body))
        await self.wait_writable()  # a client that does not read gets no more responses
        self._task, self._state_since = None, time.monotonic()
        if not response.ended:
            self.abort()
        elif self._ignoring_input and not self._pending:
            self._end_output()
        elif not response.keep_alive or (self._closing and not self._pending):
            self._transport.close()
        else:
            self._next()
            self._parse_input()
            if self._has_room and not self._ignoring_input:
                self._transport.resume_reading()
            if self._idle and not self._reading:
                self._context.connections.set_idle(self)

    def _send_rejection(self, rejection: Rejection) -> None:
        status, message = rejection
        log.info("%s: %d %s", self._peer, status, message, extra={"kind": status})
        response = ResponseWriter(self, keep_alive=False, http10=False, head_only=False)
        body, headers = self._context.format_error(status, message, self._headers)
        retry = [(b"retry-after", b"1")] if status == 429 else []
        response.send(status, body, [*headers, *retry])
        self._buffer(-self._buffered_bytes)
        self._end_output()

    def _end_output(self) -> None:
        """End the responses. The client gets LINGER_S to read the last one; see LINGER_S."""
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    # Called by the server and by response writers.

    def send(self, data: bytes) -> None:
        # After a disconnect the handler is cancelled; its last writes are dropped.
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def congested(self) -> bool:
        return not self._writable.is_set()

    async def wait_writable(self) -> None:
        await self._writable.wait()

    def close_when_idle(self) -> None:
        """Close the connection after the requests in progress."""
        self._closing = True
        if self._idle and not self._reading:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
