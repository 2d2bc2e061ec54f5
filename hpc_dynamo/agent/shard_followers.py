"""Further parts, on this node, of workers whose first part is on another.

They start when the head says where the worker's parts meet, and are never started again by
themselves: what ends one ends that life of the worker.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.engines import ShardRendezvous
from hpc_dynamo.errors import EngineError
from hpc_dynamo.messages import ShardExited, StartShard
from hpc_dynamo.topology import Worker

log = logging.getLogger(__name__)

# A worker in its role, which of its parts, where they meet.
Make = Callable[[Worker, int, ShardRendezvous], EngineProcess]


class ShardFollowers:
    """Of one node. `workers` have a further part here; `make` may raise EngineError."""

    def __init__(
        self,
        node: int,
        workers: tuple[Worker, ...],
        make: Make,
        tell: Callable[[ShardExited], Awaitable[None]],
        group: asyncio.TaskGroup,
    ) -> None:
        self._parts = {
            worker.rank: (worker, part)
            for worker in workers
            for part, shard in enumerate(worker.shards)
            if part and shard.node == node
        }
        self._make, self._tell, self._group = make, tell, group
        self._tasks = dict[int, asyncio.Task[None]]()
        self._lives = defaultdict[int, asyncio.Lock](asyncio.Lock)  # one at a time of each

    def start(self, gather: StartShard) -> None:
        """Begin a new life of a part, once the one before has ended."""
        if gather.rank not in self._parts:
            log.warning("worker %d has no further part here", gather.rank)
            return
        self.stop(gather.rank)
        life = self._live(gather)
        self._tasks[gather.rank] = self._group.create_task(life, name=f"part-{gather.rank}")

    def stop(self, rank: int) -> None:
        """Its worker needs it no more."""
        if rank in self._tasks:
            self._tasks[rank].cancel()

    async def stop_all(self) -> None:
        """Returns when all have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _live(self, gather: StartShard) -> None:
        async with self._lives[gather.rank]:
            await self._run(gather)

    async def _run(self, gather: StartShard) -> None:
        worker, number = self._parts[gather.rank]
        meeting = ShardRendezvous(gather.address, gather.ports)
        try:
            part = self._make(replace(worker, role=gather.role), number, meeting)
            async with part.running() as child:
                raise part.exit_error(await child.wait())
        except EngineError as e:
            log.error("%s", e)
            await self._tell(
                ShardExited(rank=gather.rank, incarnation=gather.incarnation, detail=str(e))
            )
