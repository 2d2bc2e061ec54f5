"""Listening socket of a server.

Connections beyond the limits of the server wait in the kernel's backlog until others end. asyncio's
own servers accept without a limit, and reset connections if no descriptor is free.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial

from hpc_dynamo.defects import contain_defects
from hpc_dynamo.descriptors import OUT_OF_DESCRIPTORS
from hpc_dynamo.http.connection_table import ConnectionTable

BACKLOG = 4096  # connections that wait to be accepted
BATCH = 256  # connections that are accepted before others are served
HANDSHAKE_S = 10.0  # time for a TLS handshake
PAUSE_S = 0.02  # between two tries while there is no room

log = logging.getLogger(__name__)


class Opening:
    """Accepted connection without a protocol so far: its TLS handshake may never end."""

    task: "asyncio.Task[None]"
    serving = False

    def __init__(self) -> None:
        self.opened_at, self.closed = time.monotonic(), asyncio.get_running_loop().create_future()

    def abort(self) -> None:
        self.task.cancel()

    def close_when_idle(self) -> None:
        self.abort()

    def check_timeouts(self, now: float) -> None:
        """Do nothing: HANDSHAKE_S limits the time."""


class Listener:
    """Accepts the connections of one socket, from its creation until `close`."""

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[Opening], asyncio.Protocol],
        table: ConnectionTable,
        tasks: asyncio.TaskGroup,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.socket, self._protocol, self._table = listening, protocol, table
        self._tasks, self._tls = tasks, tls
        self._loop = asyncio.get_running_loop()
        self._waiting: socket.socket | None = None  # accepted, without room
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Stop listening. Connections that are open stay open."""
        self._loop.remove_reader(self.socket)
        if self._pause:
            self._pause.cancel()
        if self._waiting:
            self._waiting.close()
        self.socket.close()

    def _accept(self) -> None:
        try:
            for _ in range(BATCH):
                connection = self._waiting or self.socket.accept()[0]
                self._waiting = None
                if not self._table.make_room():
                    self._waiting = connection
                    self._stop_for(PAUSE_S)
                    return
                self._open(connection)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass  # no more connections, or the client has gone
        except OSError as e:
            if e.errno == errno.EINVAL:  # another process that has the socket has shut it down
                self._loop.remove_reader(self.socket)
            elif e.errno in OUT_OF_DESCRIPTORS:
                self._stop_for(PAUSE_S)
            else:
                raise

    def _stop_for(self, seconds: float) -> None:
        self._loop.remove_reader(self.socket)
        self._pause = self._loop.call_later(seconds, self._continue)

    def _continue(self) -> None:
        self._loop.add_reader(self.socket, self._accept)
        if self._waiting:
            self._accept()

    def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        opening = Opening()
        self._table.add(opening)
        opening.task = self._tasks.create_task(self._connect(connection, opening))
        opening.task.add_done_callback(partial(self._end_opening, opening, connection))

    def _end_opening(
        self, opening: Opening, connection: socket.socket, task: "asyncio.Task[None]"
    ) -> None:
        if task.cancelled():  # perhaps before it ran
            connection.close()
        self._table.discard(opening)
        opening.closed.set_result(None)

    async def _connect(self, connection: socket.socket, opening: Opening) -> None:
        """Give the connection its protocol, which takes the place of `opening` in the table."""
        try:
            with contain_defects(log, "a new connection", passed=OSError, then=connection.close):
                await self._loop.connect_accepted_socket(
                    lambda: self._protocol(opening), connection, ssl=self._tls,
                    ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
                )  # fmt: skip
        except OSError as e:  # also a TLS error, or a handshake that takes too long
            log.info("a connection was closed before its first request: %s", e)
            connection.close()
