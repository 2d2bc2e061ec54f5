"""Keep the port of an engine from other users after its process has died.

The head and the frontends connect to the port, with the engines' key and the requests of clients,
before they know of the death. Another user that waits for the port could have it within a
millisecond.

Source: socket(7) for SO_REUSEPORT; Linux, net/ipv4/inet_connection_sock.c.
"""

import socket
from contextlib import suppress


class PortGuard:
    """A socket that is bound to the port of an engine and never listens. It is one per worker.

    The kernel then allows only sockets of this user on the port. This works if the engine has set
    SO_REUSEPORT, as vLLM does. Otherwise the port is not kept.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def keep(self, address: str, port: int) -> bool:
        """Keep a port on which the engine listens, in place of the port before. Returns False if
        that is impossible."""
        self.close()
        # Without SO_REUSEADDR: with it, sockets of all users could join one that does not listen.
        guard = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with suppress(OSError):
            guard.bind((address, port))
            self._socket = guard
            return True
        guard.close()
        return False

    def close(self) -> None:
        """Release the port."""
        if self._socket:
            self._socket.close()
            self._socket = None
