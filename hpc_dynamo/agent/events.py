"""KV events of this node's engines, relayed to the head as they are published."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

from hpc_dynamo.defects import contain_defects_of
from hpc_dynamo.engines import EventEndpoints
from hpc_dynamo.errors import WireError
from hpc_dynamo.kv.events import REPLAY_END
from hpc_dynamo.messages import KvEvents
from hpc_dynamo.wire import KvEventSubscriber

REPLAY_S = 10.0  # an engine answers replay requests between two steps

Source = tuple[int, int | None]  # rank of the worker, data-parallel rank if it has several

log = logging.getLogger(__name__)


class KvEventRelay:
    """Relays the KV events of a node's engines. `folder` holds their sockets.

    Each worker has at most one message waiting for the control plane's socket, so that many
    events do not delay heartbeats. If the head is slow, the socket fills up and the relay waits.
    Batches that the engine then drops are missing; the head detects that and requests a replay.
    """

    def __init__(
        self, folder: str, send: Callable[[KvEvents], Awaitable[None]], group: asyncio.TaskGroup
    ) -> None:
        self.folder, self._send, self._group = folder, send, group
        self._requests = dict[Source, asyncio.Queue[int]]()  # replay requests

    @asynccontextmanager
    async def follow(self, rank: int, endpoints: EventEndpoints | None) -> AsyncIterator[None]:
        """Relay events of a worker while the context is open. Enter it before the engine starts."""
        async with AsyncExitStack() as stack:
            for dp_rank, own in (endpoints.by_rank() if endpoints else {None: None}).items():
                await stack.enter_async_context(self._follow((rank, dp_rank), own))
            yield

    @asynccontextmanager
    async def _follow(self, rank: Source, endpoints: EventEndpoints | None) -> AsyncIterator[None]:
        requests = self._requests[rank] = asyncio.Queue()
        subscriber = KvEventSubscriber(endpoints.live, endpoints.replay) if endpoints else None
        loops = [partial(self._answer, rank, requests, subscriber)]
        if subscriber:
            loops.append(partial(self._relay_all, rank, subscriber))
        # A defect ends a loop, and not the engines of the node.
        what = f"the KV events of worker {rank} are no longer relayed"
        contained = [contain_defects_of(loop, log, what) for loop in loops]
        tasks = [self._group.create_task(loop, name=f"events-{rank}") for loop in contained]
        try:
            yield
        finally:
            del self._requests[rank]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if subscriber:
                subscriber.close()

    def replay(self, rank: int, start: int, dp_rank: int | None = None) -> None:
        """Send what the engine still has from number `start` on, then REPLAY_END.

        Does nothing if the worker does not run.
        """
        if queue := self._requests.get((rank, dp_rank)):
            queue.put_nowait(start)

    async def _relay_all(self, rank: Source, subscriber: KvEventSubscriber) -> None:
        try:
            while True:
                await self._relay(rank, *await subscriber.receive())
        except WireError as e:
            log.error("worker %s: its KV events are no longer relayed: %s", _name(rank), e)

    async def _answer(
        self, rank: Source, requests: "asyncio.Queue[int]", subscriber: KvEventSubscriber | None
    ) -> None:
        while True:
            start = await requests.get()
            if subscriber:
                await self._replay(rank, start, subscriber)
            await self._relay(rank, REPLAY_END, b"")

    async def _replay(self, rank: Source, start: int, subscriber: KvEventSubscriber) -> None:
        log.info("worker %s: replaying KV events from number %d on", _name(rank), start)
        try:
            async with aclosing(subscriber.replay(start, REPLAY_S)) as missed:
                async for number, payload in missed:
                    await self._relay(rank, number, payload)
        except WireError as e:
            log.error("worker %s: its KV events cannot be replayed: %s", _name(rank), e)

    async def _relay(self, rank: Source, number: int, payload: bytes) -> None:
        await self._send(KvEvents(rank=rank[0], dp_rank=rank[1], seq=number, payload=payload))
        # With sockets that are always ready, nothing above suspends this task.
        await asyncio.sleep(0)


def _name(source: Source) -> str:
    rank, dp_rank = source
    return str(rank) if dp_rank is None else f"{rank}, data-parallel rank {dp_rank}"
