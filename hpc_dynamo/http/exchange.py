"""One request and its answer, as handlers see them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import msgspec

Header = tuple[bytes, bytes]

REASONS = {s.value: s.phrase.encode() for s in HTTPStatus}


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the server's memory and patience."""

    header_bytes: int = 65536
    body_bytes: int = 32 << 20
    buffered_bytes: int = 512 << 20  # bodies of all requests that are being read or served
    receive_s: float = 60.0  # for a whole request to come in
    idle_s: float = 75.0  # of a connection between requests
    stalled_s: float = 300.0  # a reader that takes nothing for so long is gone
    pipelined: int = 4  # requests read ahead on one connection


class Request(msgspec.Struct, frozen=True):
    """A received request. Header names are in lower case; repeated ones are one list."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: str


class Wire(Protocol):
    """What a reply needs of its connection."""

    def send(self, data: bytes) -> None: ...

    @property
    def congested(self) -> bool: ...

    async def room(self) -> None: ...


class Reply:
    """One answer: `send` it whole, or `begin`, `write` and `end` a stream.

    Nothing here waits, except `drain`, which whoever writes a stream awaits while
    `congested`: the client reads more slowly than we write.
    """

    __slots__ = ("_bodiless", "_old", "_wire", "ended", "headers", "keep", "status")

    def __init__(self, wire: Wire, *, keep: bool, old: bool, bodiless: bool) -> None:
        """`keep`: the connection stays open after this answer. `old`: the client speaks
        HTTP/1.0."""
        self._wire, self.keep = wire, keep
        self._old, self._bodiless = old, bodiless
        self.headers = list[Header]()  # sent with whatever answer is given
        self.status = 0  # 0: nothing sent yet
        self.ended = False

    def send(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """The whole answer."""
        length = b"" if status == 204 else b"content-length: %d\r\n" % len(body)
        head = self._head(status, headers, length)
        self._wire.send(head if self._bodiless else head + body)
        self.ended = True

    def begin(self, status: int, headers: Iterable[Header] = ()) -> None:
        """Send the head of a stream. HTTP/1.0 has no chunks: there the end of the connection is
        the end of the stream."""
        self.keep = self.keep and not self._old
        framing = b"" if self._old else b"transfer-encoding: chunked\r\n"
        self._wire.send(self._head(status, headers, framing))

    def write(self, data: bytes) -> None:
        """Some bytes of a stream, as one chunk (RFC 9112, 7.1)."""
        if data and not self._bodiless:
            self._wire.send(data if self._old else b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The stream is complete."""
        if not (self._old or self._bodiless):
            self._wire.send(b"0\r\n\r\n")
        self.ended = True

    @property
    def congested(self) -> bool:
        return self._wire.congested

    async def drain(self) -> None:
        """Until the client has read enough of what was written."""
        await self._wire.room()

    def _head(self, status: int, headers: Iterable[Header], framing: bytes) -> bytes:
        assert not self.status, "one answer a request"
        self.status = status
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"")), date(int(time.time()))]
        lines += [b"%b: %b\r\n" % h for h in headers]
        lines += [b"%b: %b\r\n" % h for h in self.headers]
        return b"".join([*lines, self._connection, framing, b"\r\n"])

    @property
    def _connection(self) -> bytes:
        """HTTP/1.1 keeps connections by default, HTTP/1.0 only if both sides ask for it."""
        if not self.keep:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._old else b""


@lru_cache(maxsize=2)
def date(second: int) -> bytes:
    """Return the header line for a time in seconds since the epoch (RFC 9110, 6.6.1)."""
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
