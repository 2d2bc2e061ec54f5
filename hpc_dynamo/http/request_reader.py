"""Reads the requests of one connection, within limits on their memory."""

import logging
import time
from collections import deque
from typing import NamedTuple, Protocol

import httptools

from hpc_dynamo.defects import report_defect
from hpc_dynamo.http.exchange import INTERNAL_ERROR, HttpRequest, Rejection
from hpc_dynamo.http.request_head import add_header, head_without_upgrade, pieces, request_line
from hpc_dynamo.http.server_context import ServerContext

log = logging.getLogger(__name__)


class ReceivedRequest(NamedTuple):
    """A request, or why it is rejected, and what follows for the connection."""

    request: HttpRequest | Rejection
    keep_alive: bool = False
    http10: bool = False


class ReceivedRequests(Protocol):
    """Requests of a connection that wait for the handler."""

    @property
    def has_room(self) -> bool: ...

    @property
    def idle(self) -> bool: ...

    def put(self, received: ReceivedRequest) -> None: ...

    def on_key(self) -> None:
        """A request of a client with a key is being read."""

    def send(self, data: bytes) -> None:
        """Send an interim response."""


class HttpRequestReader:
    """Parses what a client sends, and puts each request into a queue once it is complete.

    A rejected request is the last: then `stopped` is true. `since` is the time when the present
    request began, or the last one ended.
    """

    def __init__(self, context: ServerContext, queue: ReceivedRequests) -> None:
        self._context, self._limits, self._queue = context, context.limits, queue
        self._parser = httptools.HttpRequestParser(self)
        self._input = deque[bytes]()  # not parsed, because enough requests are queued
        self._target, self.headers, self._head_bytes = b"", dict[str, str](), 0
        self._body = bytearray()
        self._unparsed_bytes = 0  # received since the last head, piece of a body, or request
        self._buffered_bytes = 0  # bodies of this connection's requests
        self.peer, self.since = "", time.monotonic()
        self.reading = False  # in the middle of a request
        self.stopped = False  # ignores what the client sends

    def feed(self, data: bytes) -> None:
        """Parse what the client sent."""
        if not self.stopped:
            self._input.extend(pieces(data, self._limits.pipelined))
            self.parse()

    def parse(self) -> None:
        """Parse what has been received, as far as the queue has room."""
        while self._input and not self.stopped and self._queue.has_room:
            data = self._input.popleft()
            self._unparsed_bytes += len(data)
            try:
                self._parser.feed_data(data)
                # The parser collects a header or a trailer silently until it is complete.
                if self._unparsed_bytes > self._limits.header_bytes:
                    self.reject(431, f"the headers exceed {self._limits.header_bytes} bytes")
            except httptools.HttpParserUpgrade as e:
                self._decline_upgrade(data[e.args[0] :])
            except httptools.HttpParserCallbackError as e:
                report_defect(log, ("a request of", self.peer), e.__context__ or e)
                self.reject(500, INTERNAL_ERROR)
            except httptools.HttpParserError as e:
                self.reject(400, f"this is not HTTP/1.1: {e}")

    def reject(self, status: int, message: str) -> None:
        """Queue an error response, and ignore everything that the client sends after this."""
        if not self.stopped:
            self.stopped, self.reading, self.since = True, False, time.monotonic()
            self._context.connections.rejections[str(status)] += 1
            self._queue.put(ReceivedRequest(Rejection(status, message)))

    def release(self, size: int) -> None:
        """Free the memory of a body that was served."""
        self._buffer(-size)

    def release_all(self) -> None:
        """Free the memory of all bodies of the connection."""
        self._buffer(-self._buffered_bytes)

    def close(self) -> None:
        """Stop, and free all memory."""
        self.stopped = True
        self._input.clear()
        self.release_all()

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._target, self.headers, self._head_bytes = b"", dict[str, str](), 0
        self._body = bytearray()
        self.reading, self.since = True, time.monotonic()

    def on_url(self, part: bytes) -> None:
        self._target += part
        self._count_head(len(part))
        if not part.isascii():
            self.reject(400, "the path has characters other than ASCII; escape them")

    def on_header(self, name: bytes, value: bytes) -> None:
        header = name.decode("latin-1").lower()
        if not add_header(self.headers, header, value.decode("latin-1")):
            self.reject(400, f"the header {header} was sent more than once")
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Check the key and the announced size before any of the body is read."""
        if self.stopped:
            return
        self._unparsed_bytes = 0
        length = self.headers.get("content-length", "0")
        if self._context.has_key and not self._context.has_key(self.headers):
            if length != "0" or "transfer-encoding" in self.headers:
                # The handler answers a client without a key; nothing more is read from it.
                self.stopped = True
                self._put_request(keep_alive=False)
            return
        self._queue.on_key()
        if length.isdecimal():
            self._check_body(int(length))
        if self.headers.get("expect", "").lower() == "100-continue" and self._queue.idle:
            self._queue.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        if self.stopped:
            return
        self._unparsed_bytes = 0
        self._body += part
        self._buffer(len(part))
        self._check_body(len(self._body))

    def on_message_complete(self) -> None:
        """Queue the request for the handler."""
        if self.stopped or self._parser.should_upgrade():
            return
        self._unparsed_bytes = 0
        self._put_request(keep_alive=self._parser.should_keep_alive())

    def _put_request(self, *, keep_alive: bool) -> None:
        self.reading, self.since = False, time.monotonic()
        method, path, query = request_line(self._parser.get_method(), self._target)
        body, self._body = bytes(self._body), bytearray()
        request = HttpRequest(method, path, query, self.headers, body, self.peer)
        http10 = self._parser.get_http_version() != "1.1"
        self._queue.put(ReceivedRequest(request, keep_alive, http10))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Parse a request that offers an upgrade, such as HTTP/2, again without the offer."""
        if self._parser.get_method() == b"CONNECT":
            self.reject(400, "this server is not a proxy")
            return
        head = head_without_upgrade(self._parser.get_method(), self._target, self.headers)
        self._parser = httptools.HttpRequestParser(self)
        self._input.appendleft(head + rest)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self.reject(431, f"the headers exceed {self._limits.header_bytes} bytes")

    def _check_body(self, size: int) -> None:
        buffered = self._context.buffered_bytes + size - len(self._body)
        if size > self._limits.body_bytes:
            self.reject(413, f"the body exceeds {self._limits.body_bytes} bytes")
        elif buffered > self._limits.buffered_bytes:
            self.reject(429, "the bodies of the requests in progress fill this server's memory")

    def _buffer(self, size: int) -> None:
        self._buffered_bytes += size
        self._context.buffered_bytes += size
