"""First shard of multi-node workers: starts the other shards and learns of their exit."""

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

# Time to wait for the report of a follower after this shard has exited.
REPORT_S = 1.0


class ShardLeader:
    """Leaders of multi-node workers on this node. The head passes on the messages of `send`."""

    def __init__(self, send: Callable[[StartShard], Awaitable[None]]) -> None:
        self._send = send
        self._incarnations = Counter[int]()  # starts of each worker, by rank
        self._exits = dict[int, asyncio.Future[str]]()  # exit of a follower, by rank
        self._started = dict[int, StartShard]()  # by rank

    @property
    def started(self) -> tuple[StartShard, ...]:
        """Messages that started the followers that run now."""
        return tuple(self._started.values())

    @asynccontextmanager
    async def start_shards(
        self, placement: Placement, has_followers: bool
    ) -> AsyncIterator["asyncio.Future[str]"]:
        """Start the followers of a worker, if it has some, for one start of the worker.

        The future is set to an error text when one of them exits.
        """
        rank, exited = placement.worker.rank, asyncio.get_running_loop().create_future()
        self._incarnations[rank] += 1
        self._exits[rank] = exited
        if has_followers:
            self._started[rank] = _start_message(placement, self._incarnations[rank])
            await self._send(self._started[rank])
        try:
            yield exited
        finally:
            del self._exits[rank]
            self._started.pop(rank, None)
            exited.cancel()

    def shard_exited(self, message: ShardExited) -> None:
        """Handle the exit of a follower. Messages of earlier starts are ignored."""
        exited = self._exits.get(message.rank)
        current = message.incarnation == self._incarnations[message.rank]
        if exited and not exited.done() and current:
            exited.set_result(message.detail)


def _start_message(placement: Placement, incarnation: int) -> StartShard:
    assert placement.rendezvous
    worker, rendezvous = placement.worker, placement.rendezvous
    return StartShard(
        rank=worker.rank,
        role=worker.role,
        incarnation=incarnation,
        address=rendezvous.address,
        ports=rendezvous.ports,
    )


async def wait_for_exit(
    process: EngineProcess, child: Child, follower_exit: "asyncio.Future[str]", has_followers: bool
) -> EngineError:
    """Wait until any shard of a worker has exited and return the error.

    The exit of one shard makes the others exit, and which was first is unknown. So the error
    names every shard whose exit is known within a second.
    """
    exited = asyncio.create_task(child.wait())
    either: set[asyncio.Future[Any]] = {exited, follower_exit}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            return EngineError(follower_exit.result())
        own = process.exit_error(exited.result())
        if has_followers:
            await asyncio.wait({follower_exit}, timeout=REPORT_S)
        return EngineError(f"{own}\nand {follower_exit.result()}") if follower_exit.done() else own
    finally:
        exited.cancel()
