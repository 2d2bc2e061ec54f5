"""Exchange over TCP: the head listens, and a file in the run folder holds its address.

Records travel over the sockets of the control plane, so only holders of the run's key can join.
"""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from hpc_dynamo.errors import BootstrapError
from hpc_dynamo.messages import Hello, NodeRecord, Roster
from hpc_dynamo.run import read_json, write_json
from hpc_dynamo.wire import ControlClient, ControlServer, MessageCodec

# A shared disk has no event for a new file of another node.
POLL_S = 0.1
LATE_S = 10.0  # time for spare nodes to come after the others

JoinMessage = Hello | Roster
CODEC: MessageCodec[JoinMessage] = MessageCodec(JoinMessage)  # type: ignore[arg-type]  # a union is no type[T]


class HeadAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Address at which the head waits for the other agents. Written to the run folder."""

    endpoint: str
    restart_count: int  # a requeued job must not use the file of its earlier execution


def restart_count() -> int:
    """Return how often Slurm has restarted the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


class RecordCollector:
    """Exchange at the head: receives the records of all agents and sends each the roster.

    A context manager. The file with the address exists while the exchange runs: an agent that comes
    later would wait in vain, and finds the roster in the run folder instead.
    """

    def __init__(self, me: NodeRecord, file: Path, keys: tuple[str, str]) -> None:
        self._file, self._known, self._peers = file, {me.node: me}, list[bytes]()
        self._server = ControlServer(me.address, keys, CODEC)

    def __enter__(self) -> "RecordCollector":
        endpoint = self._server.endpoint
        write_json(self._file, HeadAddress(endpoint=endpoint, restart_count=restart_count()))
        return self

    def __exit__(self, *error: object) -> None:
        self._file.unlink(missing_ok=True)
        self._server.close()

    async def collect(self, count: int, needed: int, timeout_s: float) -> tuple[NodeRecord, ...]:
        """Return the records by node, with the head's own: `count`, or fewer after `timeout_s`.

        Once the job could do with those that have come, `needed` of them, the others have LATE_S.
        """
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s) as limit:
                while len(self._known) < count:
                    if len(self._known) == needed:
                        limit.reschedule(min(limit.when() or 0.0, loop.time() + LATE_S))
                    peer, message = await self._server.receive()
                    if isinstance(message, Hello):
                        self._known[message.node.node] = message.node
                        self._peers.append(peer)
        return tuple(self._known[node] for node in sorted(self._known))

    async def answer(self, roster: Roster) -> None:
        """Send the roster to the agents that have come."""
        for peer in self._peers:
            await self._server.send(peer, roster)


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
