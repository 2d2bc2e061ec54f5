"""Limit of connections to a ZMQ server whose peers have not shown a key.

ZMQ accepts every connection and closes one without a handshake only after seconds. Without a limit,
any user of the network could use up the descriptors of the process.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Thread

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from hpc_dynamo.descriptors import connection_budget

# Agents of one address show their key within milliseconds; a node has few of them.
PER_ADDRESS = 64
TOTAL = 4096
SHARE_OF_DESCRIPTORS = 4  # at most one in four is used for connections without a key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StrangerLimits:
    """Numbers of connections without a key: of one address, and of all."""

    per_address: int = PER_ADDRESS
    total: int = TOTAL


class ConnectionLimit:
    """Closes the oldest connections without a key. A thread follows the events of the server.

    It ends with the server's socket.
    """

    def __init__(self, server: zmq.asyncio.Socket, limits: StrangerLimits) -> None:
        total = min(limits.total, connection_budget() // SHARE_OF_DESCRIPTORS)
        self._limits = StrangerLimits(limits.per_address, total)
        self.port = 0  # the port of the server, once it is bound
        self._strangers = dict[int, str]()  # address by descriptor, the oldest first
        self._counts, self._lock = Counter[str](), Lock()
        self.closed = 0
        address = f"inproc://monitor-{id(server)}"
        server.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        events: zmq.Socket[bytes] = zmq.Context.shadow(server.context.underlying).socket(zmq.PAIR)
        events.rcvhwm = 0  # with a limit ZMQ would block its own thread in a flood
        events.connect(address)
        Thread(target=self._follow, args=(events,), name="connections", daemon=True).start()

    @property
    def strangers(self) -> int:
        """Return the number of connections without a key."""
        return len(self._strangers)

    def authenticated(self, descriptor: int) -> None:
        """Report that the peer of a connection has shown the key."""
        self._forget(descriptor)

    def _follow(self, events: zmq.Socket[bytes]) -> None:
        with events:
            while True:
                try:
                    event = recv_monitor_message(events)
                except zmq.ContextTerminated:
                    return
                if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                    return
                if event["event"] == zmq.EVENT_ACCEPTED:
                    self._accepted(event["value"])
                else:
                    self._forget(event["value"])

    def _accepted(self, descriptor: int) -> None:
        with _duplicate(descriptor) as connection:
            address = connection.getpeername()[0] if connection else ""
        self._forget(descriptor)
        if not address:
            return
        with self._lock:
            self._strangers[descriptor] = address
            self._counts[address] += 1
            most = max(self._counts, key=self._counts.__getitem__)
        if self._counts[address] > self._limits.per_address:
            self._close_oldest(address)
        elif len(self._strangers) > self._limits.total:
            self._close_oldest(most)

    def _forget(self, descriptor: int) -> None:
        with self._lock:
            address = self._strangers.pop(descriptor, None)
            if address is not None:
                self._counts[address] -= 1
                self._counts += Counter()  # removes zeros

    def _close_oldest(self, address: str) -> None:
        oldest = next((fd for fd, each in [*self._strangers.items()] if each == address), None)
        if oldest is None:
            return
        self._forget(oldest)
        if not self.closed:
            log.warning(
                "%d connections without the key of the run from %s; the oldest are closed",
                self._counts[address] + 1, address,
            )  # fmt: skip
        self.closed += 1
        with _duplicate(oldest) as connection, suppress(OSError):
            # ZMQ's thread may have closed it, and the descriptor may be of something else.
            if connection and connection.getsockname()[1] == self.port:
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Yield a copy of the socket of a connection; None if it is closed."""
    try:
        copy = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        yield None
        return
    with copy:
        yield copy if _is_connected(copy) else None


def _is_connected(connection: socket.socket) -> bool:
    try:
        return bool(connection.getpeername())
    except OSError:
        return False
