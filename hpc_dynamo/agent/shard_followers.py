"""Shards on this node of multi-node workers whose first shard is on another node.

A shard starts when its leader requests it. It is not restarted by itself: its exit ends this
start of the worker.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.agent.hang_watch import wait_for_shard
from hpc_dynamo.engines import Placement, ShardRendezvous
from hpc_dynamo.errors import EngineError
from hpc_dynamo.messages import ShardExited, StartShard
from hpc_dynamo.topology import Worker

log = logging.getLogger(__name__)

# Arguments: the worker in its present role, the index of the shard, the rendezvous.
MakeProcess = Callable[[Worker, int, ShardRendezvous], EngineProcess]
# Relays the KV events of a shard while the context is open.
FollowEvents = Callable[[Placement], AbstractAsyncContextManager[None]]


class ShardFollowers:
    """Shards of `workers` on a node, except first shards. `make_process` may raise EngineError."""

    def __init__(
        self,
        node: int,
        workers: tuple[Worker, ...],
        make_process: MakeProcess,
        follow_events: FollowEvents,
        send: Callable[[ShardExited], Coroutine[None, None, None]],
        group: asyncio.TaskGroup,
    ) -> None:
        self._node = node
        self._shards = dict[int, tuple[Worker, int]]()  # worker and index of the shard, by rank
        self._make_process, self._follow_events = make_process, follow_events
        self._send, self._group = send, group
        self._tasks = dict[int, asyncio.Task[None]]()
        self._started = dict[int, StartShard]()  # last message by rank
        self._exited = dict[int, ShardExited]()  # by rank
        # A shard starts only after its earlier process has ended, so that its GPUs are free.
        self._locks = defaultdict[int, asyncio.Lock](asyncio.Lock)
        self.place(workers)

    def place(self, workers: tuple[Worker, ...]) -> None:
        """Use a new layout: stop the shards that are no longer on this node."""
        before, self._shards = (
            self._shards,
            {
                worker.rank: (worker, index)
                for worker in workers
                for index, shard in enumerate(worker.shards)
                if index and shard.node == self._node
            },
        )
        for rank in before.keys() - self._shards.keys():
            self.stop(rank)

    def start(self, message: StartShard) -> None:
        """Start a shard, once its earlier process has ended.

        A head that was restarted sends the message again. It gets the exit again, if there was one.
        """
        if message.rank not in self._shards:
            log.warning("worker %d has no shard on this node", message.rank)
            return
        if message == self._started.get(message.rank):
            if message.rank in self._exited:
                self._group.create_task(self._send(self._exited[message.rank]))
            return
        self.stop(message.rank)
        self._started[message.rank] = message
        task = self._group.create_task(self._run(message), name=f"shard-{message.rank}")
        self._tasks[message.rank] = task

    def stop(self, rank: int) -> None:
        """Stop the shard of a worker, if it runs. Does not wait for its end."""
        self._started.pop(rank, None)
        self._exited.pop(rank, None)
        if rank in self._tasks:
            self._tasks[rank].cancel()

    async def stop_all(self) -> None:
        """Stop all shards and wait until they have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, message: StartShard) -> None:
        worker, index = self._shards[message.rank]
        rendezvous = ShardRendezvous(message.address, message.ports)
        async with self._locks[message.rank]:
            try:
                process = self._make_process(replace(worker, role=message.role), index, rendezvous)
                async with self._follow_events(process.placement), process.running() as child:
                    raise await wait_for_shard(process, child)
            except EngineError as e:
                log.error("%s", e)
                incarnation = message.incarnation
                exited = ShardExited(rank=message.rank, incarnation=incarnation, detail=str(e))
                self._exited[message.rank] = exited
                await self._send(exited)
