"""The server: where it listens, how it ends."""

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Self

from hpc_dynamo.http.connection import Connection, Handler, Refuse, Service
from hpc_dynamo.http.exchange import Header, Limits

BACKLOG = 4096  # connections that wait to be accepted
SWEEP_S = 1.0  # between two looks for connections that are too slow


def plain(status: int, message: str, got: Mapping[str, str]) -> tuple[bytes, list[Header]]:
    """The usual answer to a request that never reached the handler."""
    return b"%d %b\n" % (status, message.encode()), [(b"content-type", b"text/plain")]


class Server:
    """Serves `handler` from `async with` to its end.

    A client that goes away cancels its handler. A handler that raises is answered with 500 if
    nothing was sent, else its connection is cut.
    """

    def __init__(
        self, handler: Handler, *, limits: Limits | None = None, refuse: Refuse = plain
    ) -> None:
        self._service = Service(handler, refuse, limits or Limits(), asyncio.TaskGroup())
        self._listening = list[asyncio.Server]()

    async def __aenter__(self) -> Self:
        await self._service.tasks.__aenter__()
        self._sweeper = self._service.tasks.create_task(self._sweep(), name="http-sweep")
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stops listening and cuts what is still connected; `drain` is the softer end."""
        self._sweeper.cancel()
        self._close()
        for connection in list(self._service.connections):
            connection.cut()
        await self._service.tasks.__aexit__(None, None, None)

    @property
    def connections(self) -> int:
        return len(self._service.connections)

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections on a new socket; return its port."""
        made = asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=tls, backlog=BACKLOG
        )
        return self._listens(await made)

    async def listen_on(self, opened: socket.socket, *, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections on a socket that is bound already; return its port."""
        made = asyncio.get_running_loop().create_server(
            self._connection, sock=opened, ssl=tls, backlog=BACKLOG
        )
        return self._listens(await made)

    def _connection(self) -> Connection:
        return Connection(self._service)

    def _listens(self, server: asyncio.Server) -> int:
        self._listening.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def drain(self) -> None:
        """Stop listening; returns when every request under way has its answer."""
        self._close()
        connections = self._service.connections
        for connection in list(connections):
            connection.retire()
        while connections:
            await asyncio.wait([c.closed for c in connections])

    def _close(self) -> None:
        for server in self._listening:
            server.close()
        self._listening.clear()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in list(self._service.connections):
                connection.check(now)
