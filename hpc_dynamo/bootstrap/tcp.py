"""The same exchange without MPI: the head listens, a file in the run folder says where.

The file is the one thing that needs the shared disk; records travel over the control
plane's kind of socket, so only holders of the run's key can join.
"""

import asyncio
import os
import time
from pathlib import Path

import msgspec

from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.messages import Hello, NodeRecord, Roster
from hpc_dynamo.run import read_json, write_json
from hpc_dynamo.wire import ControlClient, ControlServer, MessageCodec

POLL_S = 0.1  # a shared disk has no event for a file that appears on another node

JoinMessage = Hello | Roster
CODEC: MessageCodec[JoinMessage] = MessageCodec(JoinMessage)  # type: ignore[arg-type]  # a union is no type[T]


class HeadAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the head waits for the others."""

    endpoint: str
    restart_count: str  # a requeued job must not meet what its former life left behind


def _life() -> str:
    return os.environ.get("SLURM_RESTART_COUNT", "0")


async def collect_records(
    me: NodeRecord, count: int, file: Path, keys: tuple[str, str], timeout_s: float
) -> tuple[NodeRecord, ...]:
    """Collect `count` records, ours included, and tell everybody all of them.

    Returns fewer than `count` when the others did not come within `timeout_s`.
    """
    began = time.monotonic()
    known, peers = {me.node: me}, list[bytes]()
    server = ControlServer(me.address, keys, CODEC)
    try:
        write_json(file, HeadAddress(endpoint=server.endpoint, restart_count=_life()))
        async with asyncio.timeout(timeout_s):
            while len(known) < count:
                peer, message = await server.receive()
                if isinstance(message, Hello):
                    known[message.node.node] = message.node
                    peers.append(peer)
        records = tuple(known[node] for node in sorted(known))
        roster = Roster(nodes=records, method="tcp", seconds=time.monotonic() - began)
        for peer in peers:
            await server.send(peer, roster)
        return records
    except TimeoutError:
        return tuple(known[node] for node in sorted(known))
    finally:
        server.close()


async def send_record(
    me: NodeRecord, file: Path, keys: tuple[str, str], timeout_s: float
) -> tuple[NodeRecord, ...]:
    """Present ourselves to the head and wait for the roster. Raises BootstrapError."""
    deadline = time.monotonic() + timeout_s
    client = ControlClient(await _endpoint(file, timeout_s), keys, CODEC)
    try:
        await client.send(Hello(node=me))
        answer = await client.receive(max(deadline - time.monotonic(), POLL_S))
    finally:
        client.close()
    if not isinstance(answer, Roster):
        raise BootstrapError(f"the head answered {type(answer).__name__} where a roster was due")
    return answer.nodes


async def _endpoint(file: Path, timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = read_json(file, HeadAddress)
                if found and found.restart_count == _life():
                    return found.endpoint
                await asyncio.sleep(POLL_S)
    except TimeoutError as e:
        hint = "the log of agent 0; is the run folder on a disk that all nodes share?"
        what = f"node 0 did not open its rendezvous within {timeout_s:.0f} s ({file})"
        raise BootstrapError(what, hint=hint) from e
