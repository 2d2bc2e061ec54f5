"""A rank over several nodes, as engines have it: node 0 serves, the others hold a part of it.

Node 0 serves once all have come. Who is alone ends: node 0 when another is gone, the others when
node 0 is. They meet on one TCP connection each, which says no more than who it is.
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
PATIENCE_S = 300.0


class Nodes:
    """Node 0's view of the others. `complete` once all are here, `broken` when one has gone."""

    def __init__(self, count: int, key: str) -> None:
        self._missing, self._key = set(range(1, count)), key
        self.complete, self.broken = asyncio.Event(), asyncio.Event()
        self.gone = ""  # which of them
        if not self._missing:
            self.complete.set()

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends."""
        with contextlib.closing(writer):
            rank = self._who(await reader.readline())
            if rank is None:
                log.warning("a stranger on the nodes' port")
                return
            log.info("node %d is here", rank)
            self._missing.discard(rank)
            if not self._missing:
                self.complete.set()
            with contextlib.suppress(OSError, asyncio.CancelledError):  # at our own end
                await reader.read()
            self.gone = f"node {rank} is gone"
            self.broken.set()

    def _who(self, line: bytes) -> int | None:
        key, _, rank = line.strip().rpartition(b" ")
        known = hmac.compare_digest(key, self._key.encode()) and rank.isdigit()
        return int(rank) if known else None


@contextlib.asynccontextmanager
async def leading(args: argparse.Namespace, key: str) -> AsyncIterator[Nodes]:
    """Listens for the others, if there are to be any."""
    nodes = Nodes(args.nnodes, key)
    if args.nnodes == 1:
        yield nodes
        return
    server = await asyncio.start_server(nodes.welcome, args.master_addr, args.master_port)
    try:
        yield nodes
    finally:
        server.close()


async def following(args: argparse.Namespace, key: str) -> None:
    """Runs until node 0 is gone, which is an EngineError, or until cancelled."""
    reader, writer = await _reach(args.master_addr, args.master_port)
    with contextlib.closing(writer):
        writer.write(f"{key} {args.node_rank}\n".encode())
        log.info("node %d of %d, with node 0", args.node_rank, args.nnodes)
        with contextlib.suppress(OSError):
            await reader.read()
    raise EngineError("node 0 is gone")


async def _reach(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await asyncio.open_connection(host, port)
        except OSError as e:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(f"node 0 does not listen on {host}:{port}") from e
            await asyncio.sleep(RETRY_S)
