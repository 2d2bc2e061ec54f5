"""A rank that spans several nodes, as engines with tensor parallelism over nodes do.

Node 0 serves once all nodes have connected. Each other node keeps one TCP connection to node 0,
which starts with the run's key and the node's number. If a node is lost, all the others end.
"""

import argparse
import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator

from hpc_dynamo.errors import EngineError

log = logging.getLogger(__name__)

RETRY_S = 0.1  # node 0 may start later
CONNECT_TIMEOUT_S = 300.0


class FollowerNodes:
    """Node 0's view of the other nodes."""

    def __init__(self, count: int, key: str) -> None:
        self._missing, self._key = set(range(1, count)), key
        self.complete, self.lost = asyncio.Event(), asyncio.Event()
        self.lost_message = ""
        if not self._missing:
            self.complete.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection until it ends."""
        with contextlib.closing(writer):
            rank = self._authenticate(await reader.readline())
            if rank is None:
                log.warning("rejected a connection without the run's key")
                return
            log.info("node %d connected", rank)
            self._missing.discard(rank)
            if not self._missing:
                self.complete.set()
            with contextlib.suppress(OSError, asyncio.CancelledError):  # cancelled at shutdown
                await reader.read()
            self.lost_message = f"node {rank} is gone"
            self.lost.set()

    def _authenticate(self, line: bytes) -> int | None:
        key, _, rank = line.strip().rpartition(b" ")
        known = hmac.compare_digest(key, self._key.encode()) and rank.isdigit()
        return int(rank) if known else None


@contextlib.asynccontextmanager
async def followers(args: argparse.Namespace, key: str) -> AsyncIterator[FollowerNodes]:
    """Listen for the other nodes, if there are any."""
    nodes = FollowerNodes(args.nnodes, key)
    if args.nnodes == 1:
        yield nodes
        return
    server = await asyncio.start_server(nodes.accept, args.master_addr, args.master_port)
    try:
        yield nodes
    finally:
        server.close()


async def follow(args: argparse.Namespace, key: str) -> None:
    """Stay connected to node 0 until cancelled. Raises EngineError when node 0 is lost."""
    reader, writer = await _connect(args.master_addr, args.master_port)
    with contextlib.closing(writer):
        writer.write(f"{key} {args.node_rank}\n".encode())
        log.info("node %d of %d, connected to node 0", args.node_rank, args.nnodes)
        with contextlib.suppress(OSError):
            await reader.read()
    raise EngineError("node 0 is gone")


async def _connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
    while True:
        try:
            return await asyncio.open_connection(host, port)
        except OSError as e:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(f"node 0 does not listen on {host}:{port}") from e
            await asyncio.sleep(RETRY_S)
