"""A rank that spans several nodes, as engines with tensor parallelism over nodes do.

Node 0 serves once all nodes have connected. Each other node keeps one TCP connection to node 0,
which starts with the run's key and the node's number. If a node is lost, all the others end.

Data-parallel ranks are divided among the nodes in order. Node 0 computes for all of them, but each
node publishes the KV events of its ranks, as engines do. Node 0 sends them over the connection: the
rank and the size, uint32 each, and the payload.
"""

import argparse
import asyncio
import contextlib
import hmac
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from hpc_dynamo.errors import EngineError

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")  # data-parallel rank, size of the payload

RETRY_S = 0.1  # node 0 may start later
CONNECT_TIMEOUT_S = 300.0


class FollowerNodes:
    """Node 0's view of the other nodes."""

    def __init__(self, count: int, key: str) -> None:
        self._missing, self._key = set(range(1, count)), key
        self._writers = dict[int, asyncio.StreamWriter]()  # by node
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
            self._writers[rank] = writer
            self._missing.discard(rank)
            if not self._missing:
                self.complete.set()
            with contextlib.suppress(OSError, asyncio.CancelledError):  # cancelled at shutdown
                await reader.read()
            self.lost_message = f"node {rank} is gone"
            self.lost.set()

    async def publish(self, node: int, dp_rank: int, payload: bytes) -> None:
        """Let a node publish KV events of one of its data-parallel ranks."""
        writer = self._writers[node]
        writer.write(_HEADER.pack(dp_rank, len(payload)) + payload)
        with contextlib.suppress(OSError):  # `accept` notices that the node is lost
            await writer.drain()

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


async def follow(
    args: argparse.Namespace, key: str, publish: Callable[[int, bytes], Awaitable[None]]
) -> None:
    """Stay connected to node 0 until cancelled. Raises EngineError when node 0 is lost.

    `publish` gets the KV events of the data-parallel ranks of this node.
    """
    reader, writer = await _connect(args.master_addr, args.master_port)
    with contextlib.closing(writer):
        writer.write(f"{key} {args.node_rank}\n".encode())
        log.info("node %d of %d, connected to node 0", args.node_rank, args.nnodes)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                dp_rank, size = _HEADER.unpack(await reader.readexactly(_HEADER.size))
                await publish(dp_rank, await reader.readexactly(size))
    raise EngineError("node 0 is gone")


def node_of_rank(args: argparse.Namespace, dp_rank: int) -> int:
    """Return the node that publishes the KV events of a data-parallel rank."""
    return int(dp_rank * args.nnodes // args.data_parallel_size)


async def _connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
    while True:
        try:
            return await asyncio.open_connection(host, port)
        except OSError as e:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(f"node 0 does not listen on {host}:{port}") from e
            await asyncio.sleep(RETRY_S)
