"""One client's connection to the server: bytes to requests, one at a time to the handler."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools

from hpc_dynamo.http.exchange import Header, Limits, Reply, Request
from hpc_dynamo.http.head import add_header, split_target

LINGER_S = 2.0  # a refused client may still be sending; a cut would take our answer from it
WRITE_BUFFER_BYTES = 1 << 18  # of one stream, before its writer has to wait

Handler = Callable[[Request, Reply], Awaitable[None]]
Refuse = Callable[[int, str, Mapping[str, str]], tuple[bytes, list[Header]]]
"""(status, what is wrong, the request's headers as far as they came) → body and headers."""

log = logging.getLogger(__name__)


@dataclass
class Service:
    """What all connections of a server share. `refuse` words the answers to what could not be
    read, or was not answered."""

    handler: Handler
    refuse: Refuse
    limits: Limits
    tasks: asyncio.TaskGroup
    connections: "set[Connection]" = field(default_factory=set)
    held_bytes: int = 0  # of bodies that are being read or served


@dataclass(frozen=True)
class _Refusal:
    status: int
    message: str


class Connection(asyncio.Protocol):
    """Reads ahead while a request is served, since that is how a client's going is noticed."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, service.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._peer, self._headers = "", dict[str, str]()
        self._pending = deque[tuple[Request | _Refusal, bool, bool]]()
        self._task: asyncio.Task[None] | None = None
        self._held = 0  # bytes of our requests' bodies
        self._reading = False  # within a request
        self._retiring = self._deaf = False
        self._since = time.monotonic()  # of the present state
        self._room = asyncio.Event()
        self._room.set()
        self.closed = asyncio.get_running_loop().create_future()

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._peer = str((transport.get_extra_info("peername") or ["?"])[0])
        self._service.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._stay(data[e.args[0] :])
        except httptools.HttpParserError as e:
            self._refuse(400, f"this is not HTTP/1.1: {e}")

    def _stay(self, rest: bytes) -> None:
        """Some clients offer HTTP/2 with their first request; we read it once more without."""
        if self._parser.get_method() == b"CONNECT":
            self._refuse(400, "this server is no proxy")
            return
        start = b"%b %b HTTP/1.1\r\n" % (self._parser.get_method(), self._target)
        kept = [(k, v) for k, v in self._headers.items() if k not in ("upgrade", "connection")]
        lines = b"".join(f"{k}: {v}\r\n".encode("latin-1") for k, v in kept)
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(start + lines + b"\r\n" + rest)

    def connection_lost(self, error: Exception | None) -> None:
        self._deaf = True
        self._service.connections.discard(self)
        self._service.held_bytes -= self._held
        self._held = 0
        self._pending.clear()
        self._room.set()
        if self._task:
            self._task.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._room.clear()
        self._since = time.monotonic()

    def resume_writing(self) -> None:
        self._room.set()

    # From the parser.

    def on_message_begin(self) -> None:
        self._target, self._headers, self._head_bytes = b"", dict[str, str](), 0
        self._body, self._body_bytes = list[bytes](), 0
        self._reading, self._since = True, time.monotonic()

    def on_url(self, part: bytes) -> None:
        self._target += part
        self._count_head(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        field = name.decode("latin-1").lower()
        if not add_header(self._headers, field, value.decode("latin-1")):
            self._refuse(400, f"the header {field} was sent more than once")
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        length = self._headers.get("content-length", "")
        if length.isdecimal():
            self._check_body(int(length))
        if self._headers.get("expect", "").lower() == "100-continue" and self._idle:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        if self._deaf:
            return
        self._body_bytes += len(part)
        self._hold(len(part))
        self._check_body(self._body_bytes)
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._deaf or self._parser.should_upgrade():
            return
        self._reading, self._since = False, time.monotonic()
        path, query = split_target(self._target.decode("latin-1"))
        method = self._parser.get_method().decode("latin-1")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request(method, path, query, self._headers, body, self._peer)
        old = self._parser.get_http_version() != "1.1"
        self._pending.append((request, self._parser.should_keep_alive(), old))
        if len(self._pending) > self._limits.pipelined:
            self._transport.pause_reading()
        self._next()

    # Limits.

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self._refuse(431, f"the headers exceed {self._limits.header_bytes} bytes")

    def _check_body(self, size: int) -> None:
        if size > self._limits.body_bytes:
            self._refuse(413, f"the body exceeds {self._limits.body_bytes} bytes")
        elif self._service.held_bytes + size - self._body_bytes > self._limits.buffered_bytes:
            self._refuse(429, "the bodies of the requests under way fill this server's memory")

    def _hold(self, size: int) -> None:
        self._held += size
        self._service.held_bytes += size

    def _refuse(self, status: int, message: str) -> None:
        """Answer in turn, and take in nothing more."""
        if not self._deaf:
            self._deaf, self._reading, self._since = True, False, time.monotonic()
            self._pending.append((_Refusal(status, message), False, False))
            self._next()

    def check(self, now: float) -> None:
        """End what takes too long; called now and then."""
        age = now - self._since
        if self._task:
            if not self._room.is_set() and age > self._limits.stalled_s:
                log.info("%s reads nothing, its connection is cut", self._peer)
                self.cut()
        elif self._deaf:
            if age > LINGER_S:
                self.cut()
        elif self._reading:
            if age > self._limits.receive_s:
                self._refuse(408, f"no whole request within {self._limits.receive_s:.0f} s")
        elif age > self._limits.idle_s:
            self._transport.close()

    # Requests, one after the other.

    @property
    def _idle(self) -> bool:
        return self._task is None and not self._pending

    def _next(self) -> None:
        if self._task is None and self._pending:
            item, keep, old = self._pending.popleft()
            if isinstance(item, _Refusal):
                self._turn_away(item)
            else:
                run = self._serve(item, keep and not self._retiring, old)
                self._task = self._service.tasks.create_task(run)

    async def _serve(self, request: Request, keep: bool, old: bool) -> None:
        bodiless = request.method == "HEAD"
        reply = Reply(self, keep=keep, old=old, bodiless=bodiless)
        try:
            await self._service.handler(request, reply)
        except Exception:  # the edge of the handler: it must cost this connection alone
            log.exception("this is a defect of hpc-dynamo: %s %s", request.method, request.path)
        if not reply.status:
            why = "internal error; the server's log says more"
            reply.send(500, *self._service.refuse(500, why, request.headers))
        self._hold(-len(request.body))
        self._task, self._since = None, time.monotonic()
        if not reply.ended:
            self.cut()
        elif not reply.keep or (self._retiring and not self._pending):
            self._transport.close()
        else:
            if not self._deaf and len(self._pending) <= self._limits.pipelined:
                self._transport.resume_reading()
            self._next()

    def _turn_away(self, refusal: _Refusal) -> None:
        log.info("%s: %d %s", self._peer, refusal.status, refusal.message)
        reply = Reply(self, keep=False, old=False, bodiless=False)
        body, headers = self._service.refuse(refusal.status, refusal.message, self._headers)
        retry = [(b"retry-after", b"1")] if refusal.status == 429 else []
        reply.send(refusal.status, body, [*headers, *retry])
        self._hold(-self._held)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    # For the server and for replies.

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():  # the handler learns of it in its own time
            self._transport.write(data)

    @property
    def congested(self) -> bool:
        return not self._room.is_set()

    async def room(self) -> None:
        await self._room.wait()

    def retire(self) -> None:
        """Close after what is under way."""
        self._retiring = True
        if self._idle and not self._reading:
            self._transport.close()

    def cut(self) -> None:
        self._transport.abort()
