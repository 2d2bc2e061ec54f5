"""Connections between all nodes, and the differences of their clocks."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hpc_dynamo.doctor.records import NodeReady, PeersConnected

CONNECT_TIMEOUT_S = 5.0
CLOCK_SAMPLES = 5  # the one with the shortest round trip counts
CLOCK = struct.Struct("!d")


@asynccontextmanager
async def clock_server(address: str) -> AsyncIterator[int]:
    """Yield a port that answers each received byte with the time.

    Any user of the network can connect, so a connection gets few answers and little time.
    """
    server = await asyncio.start_server(_send_time, address, 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


async def _send_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            for _ in range(CLOCK_SAMPLES):
                if not await reader.read(1):
                    break
                writer.write(CLOCK.pack(time.time()))
    except (ConnectionError, TimeoutError):
        pass  # the client is gone, or no node of the job
    finally:
        writer.close()


async def connect_to_peers(node: int, peers: Sequence[NodeReady]) -> PeersConnected:
    """Connect to all other nodes at once."""
    others = [peer for peer in peers if peer.node != node]
    results = await asyncio.gather(*(_clock_difference(p.address, p.port) for p in others))
    found = dict(zip((peer.node for peer in others), results, strict=True))
    ahead_s = found.get(0, 0.0)
    return PeersConnected(
        node=node,
        ahead_s=ahead_s if isinstance(ahead_s, float) else 0.0,
        unreachable={peer: error for peer, error in found.items() if isinstance(error, str)},
    )


async def _clock_difference(address: str, port: int) -> float | str:
    """Return the seconds that this clock is ahead of the peer's, or the connection's error."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                return min([await _sample(reader, writer) for _ in range(CLOCK_SAMPLES)])[1]
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer from {address}:{port} in {CONNECT_TIMEOUT_S:.0f} s"
    except (OSError, asyncio.IncompleteReadError) as e:
        return f"{address}:{port}: {e}"


async def _sample(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[float, float]:
    """Return the round trip and the seconds that this clock is ahead."""
    before = time.time()
    writer.write(b"?")
    (theirs,) = CLOCK.unpack(await reader.readexactly(CLOCK.size))
    after = time.time()
    return after - before, (before + after) / 2 - theirs
