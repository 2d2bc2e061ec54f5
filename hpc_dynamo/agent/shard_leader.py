"""Lives of workers whose first part is on this node, and what became of their further parts."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from hpc_dynamo.agent.engine_process import EngineProcess
from hpc_dynamo.engines import Placement
from hpc_dynamo.errors import EngineError
from hpc_dynamo.messages import ShardExited, StartShard
from hpc_dynamo.process.child import Child

TELL_S = 1.0  # for the agent of another part to tell of its death, once the first has died


class ShardLeader:
    """Of one node. `send` is to the head, who passes it on."""

    def __init__(self, send: Callable[[StartShard], Awaitable[None]]) -> None:
        self._send = send
        self._lives = Counter[int]()  # by rank: how many there were
        self._lost = dict[int, asyncio.Future[str]]()  # of those now: how a further part died

    @asynccontextmanager
    async def start_shards(
        self, place: Placement, gathered: bool
    ) -> AsyncIterator["asyncio.Future[str]"]:
        """Further parts start, if there are any; done when one of them has died."""
        rank, lost = place.worker.rank, asyncio.get_running_loop().create_future()
        self._lives[rank] += 1
        self._lost[rank] = lost
        if gathered:
            await self._send(_gather(place, self._lives[rank]))
        try:
            yield lost
        finally:
            del self._lost[rank]
            lost.cancel()

    def shard_exited(self, message: ShardExited) -> None:
        """Of a life that is over nobody needs to know."""
        lost = self._lost.get(message.rank)
        if lost and not lost.done() and message.incarnation == self._lives[message.rank]:
            lost.set_result(message.detail)


def _gather(place: Placement, life: int) -> StartShard:
    assert place.rendezvous
    worker, met = place.worker, place.rendezvous
    return StartShard(
        rank=worker.rank, role=worker.role, incarnation=life, address=met.address, ports=met.ports
    )


async def wait_for_exit(
    part: EngineProcess, child: Child, lost: "asyncio.Future[str]", gathered: bool
) -> EngineError:
    """Waits until a part of a worker has died, and says how. The parts of one end each other: who
    was first is not known, so that all are named of which it is heard."""
    died = asyncio.create_task(child.wait())
    either: set[asyncio.Future[Any]] = {died, lost}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not died.done():
            return EngineError(lost.result())
        own = part.exit_error(died.result())
        if gathered:
            await asyncio.wait({lost}, timeout=TELL_S)
        return EngineError(f"{own}\nand {lost.result()}") if lost.done() else own
    finally:
        died.cancel()
