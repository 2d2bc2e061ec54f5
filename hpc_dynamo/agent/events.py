"""What this node's engines tell of their KV caches, passed on to the head as it comes."""

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

from hpc_dynamo.engines import EventEndpoints
from hpc_dynamo.errors import WireError
from hpc_dynamo.kv.events import REPLAY_END
from hpc_dynamo.messages import KvEvents
from hpc_dynamo.wire import KvEventSubscriber

PREFIX = "hpc-dynamo-"
LONGEST_BASE = 60  # bytes; ipc paths may have 107, and some come after the base
REPLAY_S = 10.0  # an engine looks for questions between two steps

log = logging.getLogger(__name__)


@contextmanager
def private_socket_dir() -> Iterator[str]:
    """For sockets that nobody else may reach (mode 0700), with a short path; gone at the end."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > LONGEST_BASE:
        base = "/tmp"  # the folder in it is ours alone
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=base, ignore_cleanup_errors=True) as path:
        yield path


class KvEventRelay:
    """Follows the engines of one node; `folder` is where their sockets are.

    A flood holds nothing else up: each worker has one record at a time on its way into the
    control plane's socket, where a heartbeat's turn is the next. Where the head is slow that
    socket fills up, this waits, and what the engine publishes meanwhile is lost beyond some
    thousand batches: the head finds the gap and asks.
    """

    def __init__(
        self, folder: str, send: Callable[[KvEvents], Awaitable[None]], group: asyncio.TaskGroup
    ) -> None:
        self.folder, self._send, self._group = folder, send, group
        self._asked = dict[int, asyncio.Queue[int]]()  # of workers that live, by rank

    @asynccontextmanager
    async def follow(self, rank: int, endpoints: EventEndpoints | None) -> AsyncIterator[None]:
        """One life of a worker: to be entered before its engine starts; nothing is sent after."""
        asked = self._asked[rank] = asyncio.Queue()
        follower = KvEventSubscriber(endpoints.live, endpoints.replay) if endpoints else None
        loops = [self._answer(rank, asked, follower)]
        if follower:
            loops.append(self._pass_all(rank, follower))
        tasks = [self._group.create_task(loop, name=f"events-{rank}") for loop in loops]
        try:
            yield
        finally:
            del self._asked[rank]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if follower:
                follower.close()

    def replay(self, rank: int, start: int) -> None:
        """Send what the engine still has from number `start` on, then END.

        Of a worker that is dead nothing comes; its report tells.
        """
        if rank in self._asked:
            self._asked[rank].put_nowait(start)

    async def _pass_all(self, rank: int, follower: KvEventSubscriber) -> None:
        try:
            while True:
                await self._pass(rank, *await follower.receive())
        except WireError as e:
            log.error("worker %d: its KV events are not looked at any more: %s", rank, e)

    async def _answer(
        self, rank: int, asked: "asyncio.Queue[int]", follower: KvEventSubscriber | None
    ) -> None:
        while True:
            start = await asked.get()
            if follower:
                await self._replay(rank, start, follower)
            await self._pass(rank, REPLAY_END, b"")

    async def _replay(self, rank: int, start: int, follower: KvEventSubscriber) -> None:
        log.info("worker %d: the head missed KV events from number %d on", rank, start)
        try:
            async with aclosing(follower.replay(start, REPLAY_S)) as missed:
                async for number, payload in missed:
                    await self._pass(rank, number, payload)
        except WireError as e:
            log.error("worker %d: no replay of its KV events: %s", rank, e)

    async def _pass(self, rank: int, number: int, payload: bytes) -> None:
        await self._send(KvEvents(rank=rank, seq=number, payload=payload))
        await asyncio.sleep(0)  # where sockets are always ready, nothing above gives others a turn
