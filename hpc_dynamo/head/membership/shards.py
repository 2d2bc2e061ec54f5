"""Coordination of multi-node workers by the head: passes on the messages of their shards.

See hpc_dynamo.agent for the protocol. The exit of one shard ends this start of its worker; the
agent of the first shard then starts the worker again.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator

from hpc_dynamo.messages import ControlMessage, ShardExited, StartShard, StopShard
from hpc_dynamo.topology import Worker

log = logging.getLogger(__name__)


class MultiNodeCoordinator:
    """Multi-node workers of a job. `send` sends a message to a node's agent, if it is connected."""

    def __init__(self, send: Callable[[int, ControlMessage], Awaitable[None]]) -> None:
        self._send = send
        self._started = dict[int, tuple[Worker, StartShard]]()  # by rank
        self._lost_nodes = dict[int, str]()  # reason, by node

    async def on_message(self, worker: Worker, message: StartShard | ShardExited) -> None:
        """Pass on a message about the shards of a worker."""
        if isinstance(message, StartShard):
            await self._start(worker, message)
        elif worker.rank in self._started:
            log.info("worker %d: %s", worker.rank, message.detail)
            await self._send(worker.node, message)

    async def _start(self, worker: Worker, message: StartShard) -> None:
        self._started[worker.rank] = worker, message
        for node in follower_nodes(worker):
            await self._send(node, message)
            if node in self._lost_nodes:
                await self._report_lost(worker, message, self._lost_nodes[node])

    async def node_joined(self, node: int) -> None:
        """Send a node that has joined the start messages of its shards."""
        self._lost_nodes.pop(node, None)
        for _, message in self._with_follower_on(node):
            await self._send(node, message)

    async def node_lost(self, node: int, reason: str, *, for_good: bool) -> None:
        """Report the shards of a node to their leaders as exited. If the node may return, shards
        that are started later wait for it."""
        if for_good:
            self._lost_nodes[node] = reason
        for worker, message in list(self._with_follower_on(node)):
            await self._report_lost(worker, message, reason)

    async def stop_worker(self, rank: int) -> None:
        """Stop the other shards of a worker whose first shard has ended."""
        if rank in self._started:
            worker, _ = self._started.pop(rank)
            for node in follower_nodes(worker):
                await self._send(node, StopShard(rank=rank))

    def _with_follower_on(self, node: int) -> Iterator[tuple[Worker, StartShard]]:
        return ((w, message) for w, message in self._started.values() if node in follower_nodes(w))

    async def _report_lost(self, worker: Worker, message: StartShard, reason: str) -> None:
        detail = f"a shard of worker {worker.rank} ({message.role}) is lost: {reason}"
        incarnation = message.incarnation
        exited = ShardExited(rank=worker.rank, incarnation=incarnation, detail=detail)
        await self._send(worker.node, exited)


def follower_nodes(worker: Worker) -> tuple[int, ...]:
    """Return the nodes of all shards of a worker except the first."""
    return tuple(shard.node for shard in worker.shards[1:])
