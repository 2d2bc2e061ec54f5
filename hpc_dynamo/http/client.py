"""HTTP client: pooled connections to a few servers; responses are read whole or relayed.

Errors are those of the standard library: ConnectionError (or another OSError) if a server cannot be
reached or closes the connection early. There are no timeouts here: callers limit what they await.
"""

import re
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from hpc_dynamo.http.connector import Connector, ServerAddress, server_address
from hpc_dynamo.http.exchange import Header
from hpc_dynamo.http.response import HttpResponse

_METHOD = re.compile(r"[A-Z]+")
_TARGET = re.compile(r"/[!-~]*")


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
        self.token = ""  # sent as API key, see `bearer`
        self._headers = _lines(headers)
        self._content_type = _lines([(b"content-type", content_type)] if content_type else ())
        self._idle = defaultdict[ServerAddress, list[HttpResponse]](list)
        self._connector = Connector(tls, max_connections)

    @classmethod
    def bearer(cls, token: str) -> Self:
        """Return a client that sends JSON, and the token as API key unless it is empty."""
        key = [(b"authorization", b"Bearer " + token.encode())] if token else []
        client = cls(key, content_type=b"application/json")
        client.token = token
        return client

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
        Raises OSError, and ValueError for text that would be read as more than one request.
        """
        if not (_METHOD.fullmatch(method) and _TARGET.fullmatch(path)):
            raise ValueError(f"not an HTTP request: {method!r} {path[:200]!r}")
        address = server_address(url)
        own = _lines(headers)
        content_type = b"" if b"content-type:" in own else self._content_type
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (
            method.encode(), path.encode(), address.host_header,
        )  # fmt: skip
        length = b"content-length: %d\r\n\r\n" % len(body)
        parts = (head, self._headers, content_type, own, length, body)
        async with self._connector.slots:
            # Joined here, so that a long response does not keep the copy.
            response = await self._request(address, b"".join(parts))
            try:
                yield response
            finally:
                if response.reusable:
                    response.keep()
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
    """Return header lines. Raises ValueError for a line break in a header."""
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise ValueError("a header has a line break")
    return lines
