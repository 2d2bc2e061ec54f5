"""Opens connections to servers within this process's limit of open files."""

import asyncio
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from hpc_dynamo.descriptors import OUT_OF_DESCRIPTORS, connection_budget

T = TypeVar("T", bound=asyncio.Protocol)

CLIENT_SHARE = 0.5  # share of a process's connections; a frontend needs as many for its clients
DESCRIPTOR_WAIT_S, DESCRIPTOR_RETRY_S = 30.0, 0.05  # time until a file is closed elsewhere


class ServerAddress(NamedTuple):
    """Server that a URL names."""

    host: str
    port: int
    tls: bool
    host_header: bytes


@lru_cache(maxsize=4096)
def server_address(url: str) -> ServerAddress:
    """Return the server of a base URL. The path is ignored."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return ServerAddress(parts.hostname or "", port, tls, parts.netloc.encode())


class Connector:
    """Opens connections. `slots` limits requests; each holds a slot while it has a connection.

    Requests beyond the limit wait in order of arrival.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, limit: int | None = None) -> None:
        """`limit`: maximum number of connections; None for a share of RLIMIT_NOFILE."""
        self.limit = limit or max(1, int(connection_budget() * CLIENT_SHARE))
        self._tls = tls
        self.slots = asyncio.Semaphore(self.limit)

    async def open(
        self, factory: Callable[[], T], address: ServerAddress, free_descriptors: Callable[[], None]
    ) -> T:
        """Open a connection. If this process has no free descriptor, call `free_descriptors` and
        wait for one: the server is not to blame. Raises OSError."""
        loop = asyncio.get_running_loop()
        tls = (self._tls or ssl.create_default_context()) if address.tls else None
        deadline = loop.time() + DESCRIPTOR_WAIT_S
        while True:
            try:
                opening = loop.create_connection(factory, address.host, address.port, ssl=tls)
                return (await opening)[1]
            except OSError as e:
                if e.errno not in OUT_OF_DESCRIPTORS or loop.time() > deadline:
                    raise
            free_descriptors()
            await asyncio.sleep(DESCRIPTOR_RETRY_S)
