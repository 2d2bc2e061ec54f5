"""TCP proxy in front of an engine. A test breaks its links, or answers in place of the engine."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

PIECE = 65536
CLOSED = b"closed"  # in place of an answer: the connection ends without one
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


class FaultProxy:
    """Links between clients and one engine; see `fault_proxy`.

    `to_engine` and `to_clients` are closed gates while data of this direction is kept back, as by
    a switch that drops packets. TCP sends the data when the gate opens again. `answer` replaces the
    engine's answers to POST; the connection then ends, or stays open and silent if it is empty.
    """

    def __init__(self, engine_url: str) -> None:
        self._engine = (urlsplit(engine_url).hostname or "", urlsplit(engine_url).port or 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.to_engine, self.to_clients = threading.Event(), threading.Event()
        self.delay_s = 0.0
        self.answer: bytes | None = None
        self.posts = 0
        self._sockets = set[socket.socket]()
        self.heal()
        threading.Thread(target=self._accept, daemon=True).start()

    def heal(self) -> None:
        """Undo all faults."""
        self.delay_s, self.answer = 0.0, None
        self.to_engine.set()
        self.to_clients.set()

    def cut(self) -> None:
        """Keep back all data."""
        self.to_engine.clear()
        self.to_clients.clear()

    def reset(self) -> None:
        """Reset all connections."""
        for each in list(self._sockets):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                each.shutdown(socket.SHUT_RD)
            each.close()
        self._sockets.clear()

    def close(self) -> None:
        """End all connections and threads."""
        self._server.close()
        self.heal()
        self.reset()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                with suppress(OSError):  # the engine is gone
                    self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        self._sockets.add(client)
        engine = socket.create_connection(self._engine, 10)
        engine.settimeout(None)
        self._sockets.add(engine)
        for pump in (self._requests, self._answers):
            threading.Thread(target=pump, args=(client, engine), daemon=True).start()

    def _requests(self, client: socket.socket, engine: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(PIECE):
                self.to_engine.wait()
                answer = self.answer
                if answer is not None and data.startswith(b"POST"):
                    self.posts += 1
                    if answer:
                        client.sendall(b"" if answer == CLOSED else answer)
                        client.shutdown(socket.SHUT_RDWR)
                    return
                time.sleep(self.delay_s)
                engine.sendall(data)
            engine.shutdown(socket.SHUT_WR)

    def _answers(self, client: socket.socket, engine: socket.socket) -> None:
        with suppress(OSError):
            while data := engine.recv(PIECE):
                self.to_clients.wait()
                time.sleep(self.delay_s)
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


@contextmanager
def fault_proxy(engine_url: str) -> Iterator[FaultProxy]:
    """Start a proxy in front of an engine; end it with the block."""
    proxy = FaultProxy(engine_url)
    try:
        yield proxy
    finally:
        proxy.close()
