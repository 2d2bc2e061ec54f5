"""Limit of connections to a ZMQ server whose peers have not shown a key.

ZMQ accepts every connection and closes one without a handshake only after seconds. Without a limit,
any user of the network could use up the descriptors of the process.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from hpc_dynamo.defects import contain_defects
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
        self._by_address = dict[str, dict[int, None]]()  # the same by address
        self._lock = Lock()
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
        """Follow the events until the end of the server.

        ZMQ's own thread waits for this one: an error here would stop all messages of the server.
        """
        with events:
            while True:
                try:
                    event = recv_monitor_message(events)
                except zmq.ContextTerminated:
                    return
                if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                    return
                with contain_defects(log, event):
                    self._handle(event)

    def _handle(self, event: Mapping[str, Any]) -> None:
        if event["event"] == zmq.EVENT_ACCEPTED:
            self._accepted(event["value"])
        else:
            self._forget(event["value"])

    def _accepted(self, descriptor: int) -> None:
        with _duplicate(descriptor) as connection:
            address = _addresses(connection)[1] if connection else ""
        self._forget(descriptor)
        if not address:  # its client has gone
            return
        with self._lock:
            self._strangers[descriptor] = address
            of_address = self._by_address.setdefault(address, {})
            of_address[descriptor] = None
            if len(of_address) > self._limits.per_address:
                oldest = next(iter(of_address))
            elif len(self._strangers) > self._limits.total:
                oldest = next(iter(self._strangers))
            else:
                return
        self._close(oldest)

    def _forget(self, descriptor: int) -> None:
        with self._lock:
            address = self._strangers.pop(descriptor, None)
            if address is not None:
                of_address = self._by_address[address]
                del of_address[descriptor]
                if not of_address:
                    del self._by_address[address]

    def _close(self, descriptor: int) -> None:
        if not self.closed:
            log.warning(
                "%d connections without the key of the run, one from %s; the oldest are closed",
                len(self._strangers), self._strangers.get(descriptor, "a closed one"),
            )  # fmt: skip
        self._forget(descriptor)
        self.closed += 1
        with _duplicate(descriptor) as connection:
            # ZMQ's thread may have closed it, and the descriptor may be of something else.
            if connection and _addresses(connection)[0] == self.port:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Yield a copy of the socket with this descriptor; None if it is no open socket."""
    copy = connection = None
    try:
        with suppress(OSError):
            copy = os.dup(descriptor)
            connection = socket.socket(fileno=copy)
        yield connection
    finally:
        if connection:
            connection.close()
        elif copy is not None:
            os.close(copy)


def _addresses(connection: socket.socket) -> tuple[int, str]:
    """Return the own port and the address of the peer: 0 and empty if it is not connected."""
    try:
        return int(connection.getsockname()[1]), str(connection.getpeername()[0])
    except (OSError, LookupError):  # also a socket without ports
        return 0, ""
