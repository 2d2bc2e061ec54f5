"""HTTP server: listening sockets, connections and shutdown."""

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Self

from hpc_dynamo.http.connection import ErrorFormatter, Handler, HttpConnection, ServerContext
from hpc_dynamo.http.exchange import Header, HttpLimits

BACKLOG = 4096  # connections that wait to be accepted
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
    ) -> None:
        limits = limits or HttpLimits()
        self._context = ServerContext(handler, format_error, limits, asyncio.TaskGroup())
        self._listening = list[asyncio.Server]()

    async def __aenter__(self) -> Self:
        await self._context.tasks.__aenter__()
        self._checker = self._context.tasks.create_task(self._check_timeouts(), name="http-check")
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop listening and close all connections. `drain` first lets requests end."""
        self._checker.cancel()
        self._stop_listening()
        for connection in list(self._context.connections):
            connection.abort()
        await self._context.tasks.__aexit__(None, None, None)

    @property
    def connections(self) -> int:
        return len(self._context.connections)

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections on a new socket; return its port."""
        created = asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=tls, backlog=BACKLOG
        )
        return self._add(await created)

    async def listen_on(self, bound: socket.socket, *, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections on a socket that is already bound; return its port."""
        created = asyncio.get_running_loop().create_server(
            self._connection, sock=bound, ssl=tls, backlog=BACKLOG
        )
        return self._add(await created)

    def _connection(self) -> HttpConnection:
        return HttpConnection(self._context)

    def _add(self, server: asyncio.Server) -> int:
        self._listening.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def drain(self) -> None:
        """Stop listening; return when every request in progress has its response."""
        self._stop_listening()
        connections = self._context.connections
        for connection in list(connections):
            connection.close_when_idle()
        while connections:
            await asyncio.wait([c.closed for c in connections])

    def _stop_listening(self) -> None:
        for server in self._listening:
            server.close()
        self._listening.clear()

    async def _check_timeouts(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            now = time.monotonic()
            for connection in list(self._context.connections):
                connection.check_timeouts(now)
