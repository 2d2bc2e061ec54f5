"""HTTP client: pooled connections to a few servers; responses are read whole or relayed.

Errors are those of the standard library: ConnectionError (or another OSError) if a server cannot be
reached or closes the connection early. There are no timeouts here: callers limit what they await.
"""

import asyncio
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, Self, cast

import httptools

from hpc_dynamo.http.connector import Connector, ServerAddress, server_address
from hpc_dynamo.http.exchange import Header

LAST_PIECES = 16


class ByteSink(Protocol):
    """Destination of a relayed body; see `HttpResponse.relay`."""

    def write(self, data: bytes) -> None:
        """Take a piece. What it raises ends the relay, which raises it as well."""

    @property
    def congested(self) -> bool: ...

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

    async def read(self) -> bytes:
        """Return the whole body."""
        while not self._complete:
            await self._wait_for_change()
        return b"".join(self._body)

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

    def abort(self) -> None:
        self._transport.abort()

    @property
    def nothing_received(self) -> bool:
        return not self.status

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
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._error = ConnectionError(f"the response is not HTTP/1.1: {e}")
            self._transport.abort()
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        # Without these headers the end of the connection is the end of the body.
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self._head_received and not error and not framed:
            self._complete = True
        self._error = self._error or ConnectionResetError("the server closed the connection")
        self._wake()

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
        except Exception as e:  # noqa: BLE001  # `relay` raises it; the event loop calls this
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


class HttpClient:
    """Client with a pool of idle connections per server. The pool grows with concurrency."""

    def __init__(
        self,
        headers: Sequence[Header] = (),
        tls: ssl.SSLContext | None = None,
        content_type: bytes = b"",
        max_connections: int | None = None,
    ) -> None:
        """`content_type` applies to requests that do not set one themselves. More requests than
        `max_connections` (None: a share of RLIMIT_NOFILE) wait for a connection."""
        self._headers = _lines(headers)
        self._content_type = _lines([(b"content-type", content_type)] if content_type else ())
        self._idle = defaultdict[ServerAddress, list[HttpResponse]](list)
        self._connector = Connector(tls, max_connections)

    @classmethod
    def bearer(cls, token: str) -> Self:
        """Return a client that sends JSON, and the token as API key unless it is empty."""
        key = [(b"authorization", b"Bearer " + token.encode())] if token else []
        return cls(key, content_type=b"application/json")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._close_idle()

    def _close_idle(self) -> None:
        for responses in self._idle.values():
            for response in responses:
                response.abort()
        self._idle.clear()

    @asynccontextmanager
    async def send(
        self, method: str, url: str, path: str, body: bytes = b"", headers: Sequence[Header] = ()
    ) -> AsyncIterator[HttpResponse]:
        """Send one request to `url` + `path`; yield when the head of its response has arrived.

        Leaving the block early closes the connection, so that an engine stops generating.
        Raises OSError.
        """
        address = server_address(url)
        own = _lines(headers)
        content_type = b"" if b"content-type:" in own else self._content_type
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (
            method.encode(), path.encode(), address.host_header,
        )  # fmt: skip
        length = b"content-length: %d\r\n\r\n" % len(body)
        request = b"".join((head, self._headers, content_type, own, length, body))
        async with self._connector.slots:
            response = await self._request(address, request)
            try:
                yield response
            finally:
                if response.reusable:
                    response.used = True
                    self._idle[address].append(response)
                else:
                    response.abort()

    async def _request(self, address: ServerAddress, request: bytes) -> HttpResponse:
        """Send the request. The server may close a pooled connection at the same moment; then the
        request is sent again. If the server is gone, raise the error of the pooled connection: the
        server may have ended because of the request."""
        closed: ConnectionError | None = None
        while True:
            try:
                response = await self._connection(address)
            except OSError as e:
                raise closed or e from e
            response.start(request)
            try:
                await response.wait_for_head()
                return response
            except ConnectionError as e:
                if not (response.used and response.nothing_received):
                    raise
                closed = e
            except BaseException:
                response.abort()
                raise

    async def _connection(self, address: ServerAddress) -> HttpResponse:
        idle = self._idle[address]
        while idle:
            response = idle.pop()
            if response.reusable:
                return response
        if sum(map(len, self._idle.values())) >= self._connector.limit // 2:
            self._close_idle()
        return await self._connector.open(HttpResponse, address, self._close_idle)


def _lines(headers: Sequence[Header]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
