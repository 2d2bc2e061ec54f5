"""Server side of one connection: passes its requests to the handler, and writes the responses."""

import asyncio
import logging
import math
import time
from collections import deque
from functools import partial
from typing import cast

from hpc_dynamo.defects import contain_defects, contain_defects_of
from hpc_dynamo.http.connection_table import Closable
from hpc_dynamo.http.exchange import INTERNAL_ERROR, HttpRequest, Rejection, ResponseWriter
from hpc_dynamo.http.request_reader import HttpRequestReader, ReceivedRequest
from hpc_dynamo.http.server_context import ServerContext

LINGER_S = 2.0  # a rejected client stops sending; closing earlier could discard the response
WRITE_BUFFER_BYTES = 1 << 18  # unsent bytes of a stream above which its writer waits

log = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """Connection of one client, `opening` in the table until it is made. Reads ahead while a
    request is served, to detect a disconnect."""

    def __init__(self, context: ServerContext, opening: Closable) -> None:
        self._context, self._limits, self._opening = context, context.limits, opening
        self._reader = HttpRequestReader(context, self)
        self._pending = deque[ReceivedRequest]()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._closing = False  # closes once idle
        self._state_since = self.opened_at = time.monotonic()
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed = asyncio.get_running_loop().create_future()

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection to those of the server."""
        # uvloop's transport is not a subclass of asyncio.Transport, but has its interface.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._reader.peer = str((transport.get_extra_info("peername") or ["?"])[0])
        self._context.connections.replace(self._opening, self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Release the buffers and cancel the handler."""
        self._context.connections.discard(self)
        self._reader.close()
        self._pending.clear()
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

    # Called by the reader.

    @property
    def has_room(self) -> bool:
        return len(self._pending) <= self._limits.pipelined

    @property
    def idle(self) -> bool:
        """Return True if no request is served or waits."""
        return self._task is None and not self._pending

    def put(self, received: ReceivedRequest) -> None:
        """Serve a request, after those before it."""
        self._pending.append(received)
        if not self.has_room:
            self._transport.pause_reading()
        self._next()

    def on_key(self) -> None:
        self._context.connections.set_busy(self)

    def check_timeouts(self, now: float) -> None:
        """Close the connection, or reject its request, if the client is too slow."""
        age, limits = now - max(self._state_since, self._reader.since), self._limits
        anonymous_s = math.inf if self._context.connections.has_key(self) else limits.anonymous_s
        receive_s = min(limits.receive_s, anonymous_s)
        if self._task:
            unread_s = 0.0 if self._writable.is_set() else now - self._state_since
            if unread_s > min(limits.stalled_s, anonymous_s):
                log.info("%s does not read its response; connection closed", self._reader.peer)
                self.abort()
        elif self._reader.stopped:
            if age > LINGER_S:
                self.abort()
        elif self._reader.reading:
            if age > receive_s:
                self._reader.reject(408, f"no complete request within {receive_s:.0f} s")
        elif age > min(limits.idle_s, anonymous_s):
            unsent = self._transport.get_write_buffer_size()  # for which `close` would wait
            self.abort() if unsent else self._transport.close()

    @property
    def serving(self) -> bool:
        """Return True while the handler works on a request of this connection."""
        return self._task is not None

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
        self._context.count_body(len(request.body))
        response = ResponseWriter(
            self, keep_alive=keep_alive, http10=http10, head_only=request.method == "HEAD"
        )
        with contain_defects(log, (request.method, request.path)):
            await self._context.handler(request, response)
        if not response.status:
            error = self._context.format_error(500, INTERNAL_ERROR, request.headers)
            response.send(500, *error)
        self._reader.release(len(request.body))
        await self.wait_writable()  # a client that does not read gets no more responses
        self._task, self._state_since = None, time.monotonic()
        if not response.ended:
            self.abort()
        elif self._reader.stopped and not self._pending:
            self._end_output()
        elif not response.keep_alive or (self._closing and not self._pending):
            self._transport.close()
        else:
            self._next()
            self._reader.parse()
            if self.has_room and not self._reader.stopped:
                self._transport.resume_reading()
            if self.idle and not self._reader.reading:
                self._context.connections.set_idle(self)

    def _send_rejection(self, rejection: Rejection) -> None:
        status, message = rejection
        log.info("%s: %d %s", self._reader.peer, status, message, extra={"kind": status})
        response = ResponseWriter(self, keep_alive=False, http10=False, head_only=False)
        body, headers = self._context.format_error(status, message, self._reader.headers)
        retry = [(b"retry-after", b"1")] if status == 429 else []
        response.send(status, body, [*headers, *retry])
        self._reader.release_all()
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
        if self.idle and not self._reader.reading:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
