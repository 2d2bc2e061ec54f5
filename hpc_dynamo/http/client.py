"""The client: kept connections to a few servers, answers read whole or relayed.

Errors are the standard library's: ConnectionError (or another OSError) where a server cannot
be reached or breaks off. There are no timeouts in here: callers bound what they await.
"""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import NamedTuple, Protocol, Self, cast
from urllib.parse import urlsplit

import httptools

from hpc_dynamo.http.exchange import Header


class Origin(NamedTuple):
    """Where a URL points to."""

    host: str
    port: int
    tls: bool
    name: bytes  # for the Host header


@lru_cache(maxsize=4096)
def origin(url: str) -> Origin:
    """Of a base URL, whose path is not looked at."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return Origin(parts.hostname or "", port, tls, parts.netloc.encode())


class Sink(Protocol):
    """Where a relayed body goes; see `Answer.relay`."""

    def write(self, data: bytes) -> None: ...

    @property
    def congested(self) -> bool: ...

    async def drain(self) -> None: ...


class Answer(asyncio.Protocol):
    """One connection, and the answer that is coming in on it.

    Good until the end of the `async with` that gave it. `headers` have lower-case names.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._changed: asyncio.Future[None] | None = None
        self._error: ConnectionError | None = None
        self._sink: Sink | None = None
        self.used = False  # for an earlier answer
        self._prepare()

    def _prepare(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers = 0, dict[str, str]()
        self._headed = self._complete = self._keep = False
        self._body = list[bytes]()

    async def read(self) -> bytes:
        """The whole body."""
        while not self._complete:
            await self._change()
        return b"".join(self._body)

    async def relay(self, sink: Sink) -> None:
        """Hand the body on, piece by piece as it comes in. No task wakes for a piece; a sink
        that is congested stops us reading, and so in the end the server writing."""
        self._sink = sink
        if self._body:
            sink.write(b"".join(self._body))
            self._body.clear()
        while not self._complete:
            if sink.congested:
                self._transport.pause_reading()
                await sink.drain()
                self._transport.resume_reading()
            else:
                await self._change()

    @property
    def reusable(self) -> bool:
        return self._complete and self._keep and not self._transport.is_closing()

    # For the client.

    def ask(self, data: bytes) -> None:
        self._sink = None
        self._prepare()
        self._transport.write(data)

    async def head(self) -> None:
        while not self._headed:
            await self._change()

    def cut(self) -> None:
        self._transport.abort()

    @property
    def silent(self) -> bool:
        """Nothing has come in yet."""
        return not self.status

    async def _change(self) -> None:
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

    # From the transport and the parser.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._error = ConnectionError(f"the answer is not HTTP/1.1: {e}")
            self._transport.abort()
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._headed and not error and not self._framed:
            self._complete = True
        self._error = self._error or ConnectionResetError("the server closed the connection")
        self._wake()

    @property
    def _framed(self) -> bool:
        """Without either of these the end of the connection is the end of the body."""
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    def on_status(self, reason: bytes) -> None:
        self.status = self._parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._headed = self.status >= 200
        if self._headed:
            self._wake()

    def on_body(self, part: bytes) -> None:
        if self._sink is None:
            self._body.append(part)
            return
        self._sink.write(part)
        if self._sink.congested:
            self._wake()

    def on_message_complete(self) -> None:
        if not self._headed:  # an interim answer
            self.status, self.headers = 0, {}
            return
        self._complete, self._keep = True, self._parser.should_keep_alive()
        self._wake()


class Client:
    """Connections are kept for the next request, as many as were needed at a time."""

    def __init__(
        self, headers: Sequence[Header] = (), tls: ssl.SSLContext | None = None, kind: bytes = b""
    ) -> None:
        """`kind` is the content type of requests that do not set one themselves."""
        self._headers = b"".join(b"%b: %b\r\n" % h for h in headers)
        self._kind = b"content-type: %b\r\n" % kind if kind else b""
        self._idle = defaultdict[Origin, list[Answer]](list)
        self._tls = tls

    @classmethod
    def bearer(cls, token: str) -> Self:
        """For JSON, to servers that ask for a key; without a token, to those that do not."""
        key = [(b"authorization", b"Bearer " + token.encode())] if token else []
        return cls(key, kind=b"application/json")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for answers in self._idle.values():
            for answer in answers:
                answer.cut()
        self._idle.clear()

    @asynccontextmanager
    async def send(
        self, method: str, url: str, path: str, body: bytes = b"", headers: Sequence[Header] = ()
    ) -> AsyncIterator[Answer]:
        """One request to `url` + `path`; yields when the head of its answer is in.

        Leaving early cuts the connection, which is how an engine learns that nobody wants the
        rest. Raises OSError.
        """
        where = origin(url)
        own = b"".join(b"%b: %b\r\n" % h for h in headers)
        kind = b"" if b"content-type:" in own else self._kind
        start = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), path.encode(), where.name)
        length = b"content-length: %d\r\n\r\n" % len(body)
        answer = await self._ask(where, b"".join((start, self._headers, kind, own, length, body)))
        try:
            yield answer
        finally:
            if answer.reusable:
                answer.used = True
                self._idle[where].append(answer)
            else:
                answer.cut()

    async def _ask(self, where: Origin, data: bytes) -> Answer:
        """Send the request. The server may close a kept connection while the request is on its way;
        then the request is sent again. If the server is gone, raise the error of the kept
        connection: the server may have ended because of the request."""
        closed: ConnectionError | None = None
        while True:
            try:
                answer = await self._connection(where)
            except OSError as e:
                raise closed or e from e
            answer.ask(data)
            try:
                await answer.head()
                return answer
            except ConnectionError as e:
                if not (answer.used and answer.silent):
                    raise
                closed = e
            except BaseException:
                answer.cut()
                raise

    async def _connection(self, where: Origin) -> Answer:
        idle = self._idle[where]
        while idle:
            answer = idle.pop()
            if answer.reusable:
                return answer
        loop = asyncio.get_running_loop()
        tls = (self._tls or ssl.create_default_context()) if where.tls else None
        _, answer = await loop.create_connection(Answer, where.host, where.port, ssl=tls)
        return answer
