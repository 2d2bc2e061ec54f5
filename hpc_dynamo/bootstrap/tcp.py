"""Exchange over TCP: the head listens, and a file in the run folder holds its address.

Records travel over the sockets of the control plane, so only holders of the run's key can join.
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

# A shared disk has no event for a new file of another node.
POLL_S = 0.1

JoinMessage = Hello | Roster
CODEC: MessageCodec[JoinMessage] = MessageCodec(JoinMessage)  # type: ignore[arg-type]  # a union is no type[T]


class HeadAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Address at which the head waits for the other agents. Written to the run folder."""

    endpoint: str
    restart_count: int  # a requeued job must not use the file of its earlier execution


def restart_count() -> int:
    """Return how often Slurm has restarted the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


async def collect_records(
    me: NodeRecord, count: int, file: Path, keys: tuple[str, str], timeout_s: float
) -> tuple[NodeRecord, ...]:
    """Receive the records of all agents, send the roster to each, and return the records by node.

    They include `me`, the head's own. Returns fewer than `count` records after `timeout_s`.
    """
    began = time.monotonic()
    known, peers = {me.node: me}, list[bytes]()
    server = ControlServer(me.address, keys, CODEC)
    try:
        write_json(file, HeadAddress(endpoint=server.endpoint, restart_count=restart_count()))
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
) -> Roster:
    """Send this agent's record to the head and return the roster. Raises BootstrapError."""
    deadline = time.monotonic() + timeout_s
    client = ControlClient(await _endpoint(file, timeout_s), keys, CODEC)
    try:
        await client.send(Hello(node=me))
        answer = await client.receive(max(deadline - time.monotonic(), POLL_S))
    finally:
        client.close()
    if not isinstance(answer, Roster):
        raise BootstrapError(f"the head sent {type(answer).__name__} instead of a roster")
    return answer


async def _endpoint(file: Path, timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = read_json(file, HeadAddress)
                if found and found.restart_count == restart_count():
                    return found.endpoint
                await asyncio.sleep(POLL_S)
    except TimeoutError as e:
        what = f"node 0 did not write its address within {timeout_s:.0f} s ({file})"
        hint = "read the log of agent 0; check that all nodes share the disk of the run folder"
        raise BootstrapError(what, hint=hint) from e
