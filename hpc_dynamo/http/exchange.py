"""One request and its response, as handlers see them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple, Protocol

import msgspec

Header = tuple[bytes, bytes]

INTERNAL_ERROR = "internal error; see the server's log"
REASONS = {s.value: s.phrase.encode() for s in HTTPStatus}


@dataclass(frozen=True)
class HttpLimits:
    """Limits of a server on memory and time per client."""

    header_bytes: int = 65536
    body_bytes: int = 32 << 20
    buffered_bytes: int = 512 << 20  # bodies of all requests that are being read or served
    collect_bytes: int = 128 << 20  # bodies after which garbage is collected
    receive_s: float = 60.0  # time for a whole request to arrive
    idle_s: float = 75.0  # idle time of a connection between requests
    stalled_s: float = 300.0  # time without progress of a client that reads a response
    # Idle time, and time for a request, of a client without a key.
    anonymous_s: float = 15.0
    connections: int | None = None  # open connections; None: a share of RLIMIT_NOFILE
    pipelined: int = 4  # requests read ahead on one connection


class Rejection(NamedTuple):
    """Response to a request that never reaches the handler."""

    status: int
    message: str


class HttpRequest(msgspec.Struct, frozen=True):
    """A received request. Header names are in lower case; repeated headers are one list."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: str  # address of the client


class ResponseTransport(Protocol):
    """Connection that a response is written to."""

    def send(self, data: bytes) -> None: ...

    @property
    def congested(self) -> bool: ...

    async def wait_writable(self) -> None: ...


class ResponseWriter:
    """Writes one response: `send` it whole, or `begin`, `write` and `end` a stream.

    Only `drain` waits. The writer of a stream awaits it while `congested`, which means that the
    client reads more slowly than the server writes.
    """

    __slots__ = ("_head_only", "_http10", "_transport", "ended", "headers", "keep_alive", "status")

    def __init__(
        self, transport: ResponseTransport, *, keep_alive: bool, http10: bool, head_only: bool
    ) -> None:
        """`keep_alive`: the connection stays open after this response. `http10`: the client
        speaks HTTP/1.0. `head_only`: the request was HEAD."""
        self._transport, self.keep_alive = transport, keep_alive
        self._http10, self._head_only = http10, head_only
        self.headers = list[Header]()  # added to any response
        self.status = 0  # 0: nothing sent yet
        self.ended = False

    def send(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """Send the whole response."""
        length = b"" if status == 204 else b"content-length: %d\r\n" % len(body)
        head = self._head(status, headers, length)
        self._transport.send(head if self._head_only else head + body)
        self.ended = True

    def begin(self, status: int, headers: Iterable[Header] = ()) -> None:
        """Send the head of a stream. HTTP/1.0 has no chunks: there the end of the connection is
        the end of the stream."""
        self.keep_alive = self.keep_alive and not self._http10
        framing = b"" if self._http10 else b"transfer-encoding: chunked\r\n"
        self._transport.send(self._head(status, headers, framing))

    def write(self, data: bytes) -> None:
        """Send a part of a stream as one chunk (RFC 9112, 7.1)."""
        if data and not self._head_only:
            self._transport.send(data if self._http10 else b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Complete the stream."""
        if not (self._http10 or self._head_only):
            self._transport.send(b"0\r\n\r\n")
        self.ended = True

    @property
    def congested(self) -> bool:
        return self._transport.congested

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written."""
        await self._transport.wait_writable()

    def _head(self, status: int, headers: Iterable[Header], framing: bytes) -> bytes:
        assert not self.status, "a request has one response"
        self.status = status
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"")), date(int(time.time()))]
        lines += [b"%b: %b\r\n" % h for h in headers]
        lines += [b"%b: %b\r\n" % h for h in self.headers]
        return b"".join([*lines, self._connection, framing, b"\r\n"])

    @property
    def _connection(self) -> bytes:
        """HTTP/1.1 keeps connections by default, HTTP/1.0 only if both sides ask for it."""
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._http10 else b""


@lru_cache(maxsize=2)
def date(second: int) -> bytes:
    """Return the header line for a time in seconds since the epoch (RFC 9110, 6.6.1)."""
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
