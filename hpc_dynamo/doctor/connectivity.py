"""Can the nodes reach each other's ports, and how far are their clocks apart."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hpc_dynamo.doctor.records import NodeReady, PeersConnected

CONNECT_TIMEOUT_S = 5.0
CLOCK_SAMPLES = 5  # times; the quickest answer tells the time best
CLOCK = struct.Struct("!d")


@asynccontextmanager
async def clock_server(address: str) -> AsyncIterator[int]:
    """A port that tells the time to whoever sends a byte, until left."""
    server = await asyncio.start_server(_tell, address, 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.read(1):
            writer.write(CLOCK.pack(time.time()))
            await writer.drain()
    except ConnectionError:
        pass  # who asked is gone
    finally:
        writer.close()


async def connect_to_peers(node: int, peers: Sequence[NodeReady]) -> PeersConnected:
    """Tries all the others at once."""
    others = [peer for peer in peers if peer.node != node]
    answers = await asyncio.gather(*(_reach(peer.address, peer.port) for peer in others))
    said = dict(zip((peer.node for peer in others), answers, strict=True))
    ahead = said.get(0, 0.0)
    return PeersConnected(
        node=node,
        ahead_s=ahead if isinstance(ahead, float) else 0.0,
        unreachable={peer: answer for peer, answer in said.items() if isinstance(answer, str)},
    )


async def _reach(address: str, port: int) -> float | str:
    """How far our clock is ahead of the one there, or why it cannot be asked."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                return min([await _ask(reader, writer) for _ in range(CLOCK_SAMPLES)])[1]
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer from {address}:{port} in {CONNECT_TIMEOUT_S:.0f} s"
    except (OSError, asyncio.IncompleteReadError) as e:
        return f"{address}:{port}: {e}"


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[float, float]:
    """Seconds for the way there and back, and how far we are ahead."""
    before = time.time()
    writer.write(b"?")
    (theirs,) = CLOCK.unpack(await reader.readexactly(CLOCK.size))
    after = time.time()
    return after - before, (before + after) / 2 - theirs
