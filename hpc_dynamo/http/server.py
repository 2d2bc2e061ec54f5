"""HTTP server: listening sockets, connections and shutdown."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Self

from hpc_dynamo.defects import contain_defects
from hpc_dynamo.http.connection import HttpConnection
from hpc_dynamo.http.connection_table import Closable, ConnectionTable
from hpc_dynamo.http.exchange import Header, HttpLimits
from hpc_dynamo.http.listener import Listener
from hpc_dynamo.http.server_context import ErrorFormatter, Handler, KeyCheck, ServerContext

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0  # between two checks for connections that are too slow


def plain_text_error(
    status: int, message: str, headers: Mapping[str, str]
) -> tuple[bytes, list[Header]]:
    """Return the default response to a request that never reached the handler."""
    return b"%d %b\n" % (status, message.encode()), [(b"content-type", b"text/plain")]


class HttpServer:
    """Calls `handler` for each request, from the start of `async with` to its end.

    A client that disconnects cancels its handler. If a handler raises, the server answers 500 if
    nothing was sent, and otherwise closes the connection.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: HttpLimits | None = None,
        format_error: ErrorFormatter = plain_text_error,
        has_key: KeyCheck | None = None,
    ) -> None:
        """`has_key` is asked about each request before its body is read. Without a key the handler
        gets the request with an empty body, and the connection counts as anonymous."""
        limits = limits or HttpLimits()
        table = ConnectionTable(limits.connections, keys=has_key is not None)
        self._context = ServerContext(
            handler, format_error, limits, asyncio.TaskGroup(), table, has_key
        )
        self._listening = list[Listener]()

    async def __aenter__(self) -> Self:
        await self._context.tasks.__aenter__()
        self._checker = self._context.tasks.create_task(self._check_timeouts(), name="http-check")
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop listening and close all connections. `drain` first lets requests end."""
        self._checker.cancel()
        self._stop_listening()
        for connection in self._context.connections.all():
            connection.abort()
        await self._context.tasks.__aexit__(None, None, None)

    @property
    def connections(self) -> int:
        return len(self._context.connections)

    @property
    def rejections(self) -> Mapping[str, int]:
        """Rejected requests by status, and connections closed at a limit (`connections`)."""
        return self._context.connections.rejections

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, reuse_port: bool = False
    ) -> int:
        """Accept connections on a new socket; return its port. `reuse_port`: other sockets of this
        user may have the port later."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, port), family=family)
        if reuse_port:  # set after the bind, which fails if the port is in use
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return await self.listen_on(made, tls=tls)

    async def listen_on(self, bound: socket.socket, *, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections on a socket that is already bound; return its port."""
        listener = Listener(
            bound, self._connection, self._context.connections, self._context.tasks, tls
        )
        self._listening.append(listener)
        return listener.port

    def _connection(self, opening: Closable) -> HttpConnection:
        return HttpConnection(self._context, opening)

    async def drain(self) -> None:
        """Stop listening; return when every request in progress has its response."""
        self._stop_listening()
        connections = self._context.connections
        for connection in connections.all():
            connection.close_when_idle()
        while connections:
            await asyncio.wait([c.closed for c in connections.all()])

    def _stop_listening(self) -> None:
        for listener in self._listening:
            listener.close()
        self._listening.clear()

    async def _check_timeouts(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            now = time.monotonic()
            for connection in self._context.connections.all():
                with contain_defects(log, "a slow connection", then=connection.abort):
                    connection.check_timeouts(now)
