"""What the parts of a worker over several nodes must know of each other, passed on by the head.

The agent of the first part tells where they meet, and the others' start theirs. What ends one of
them ends that life of the worker; the agent of the first begins the next.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator

from hpc_dynamo.messages import ControlMessage, ShardExited, StartShard, StopShard
from hpc_dynamo.topology import Worker

log = logging.getLogger(__name__)


class MultiNodeCoordinator:
    """`send` gives a message to the agent of a node, if that is here."""

    def __init__(self, send: Callable[[int, ControlMessage], Awaitable[None]]) -> None:
        self._send = send
        self._lives = dict[int, tuple[Worker, StartShard]]()  # by rank: those that are not over
        self._gone = dict[int, str]()  # nodes, and why

    async def on_message(self, worker: Worker, message: StartShard | ShardExited) -> None:
        """What an agent says of a part of this worker."""
        if isinstance(message, StartShard):
            await self._gather(worker, message)
        elif worker.rank in self._lives:  # the first part's agent knows of which life
            log.info("worker %d: %s", worker.rank, message.detail)
            await self._send(worker.node, message)

    async def _gather(self, worker: Worker, message: StartShard) -> None:
        """A life of a worker begins; nodes that are not here yet are told when they come."""
        self._lives[worker.rank] = worker, message
        for node in follower_nodes(worker):
            await self._send(node, message)
            if node in self._gone:
                await self._lost(worker, message, self._gone[node])

    async def node_joined(self, node: int) -> None:
        self._gone.pop(node, None)
        for _, message in self._with_part_on(node):
            await self._send(node, message)

    async def node_lost(self, node: int, why: str) -> None:
        """The agent of a node has ended or died, and all that it ran."""
        self._gone[node] = why
        for worker, message in list(self._with_part_on(node)):
            await self._lost(worker, message, why)

    async def stop_worker(self, rank: int) -> None:
        """A life of a worker has ended: what is left of it ends too."""
        if rank in self._lives:
            worker, _ = self._lives.pop(rank)
            for node in follower_nodes(worker):
                await self._send(node, StopShard(rank=rank))

    def _with_part_on(self, node: int) -> Iterator[tuple[Worker, StartShard]]:
        return ((w, message) for w, message in self._lives.values() if node in follower_nodes(w))

    async def _lost(self, worker: Worker, message: StartShard, why: str) -> None:
        detail = f"a part of worker {worker.rank} ({message.role}) is lost: {why}"
        died = ShardExited(rank=worker.rank, incarnation=message.incarnation, detail=detail)
        await self._send(worker.node, died)


def follower_nodes(worker: Worker) -> tuple[int, ...]:
    """Nodes of its parts beyond the first."""
    return tuple(shard.node for shard in worker.shards[1:])
