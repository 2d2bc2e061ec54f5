"""The one path of a request: choose, prefill, hand over, decode; or both of these at once.

Shared by every front of the product, in the process of the front. Who serves and how busy
they are is the router's to know, in this process or behind a socket.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hpc_dynamo.engines import Body, Concurrent, Dialect, Sequential
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import Answer, Client
from hpc_dynamo.router import Ask, Exhausted, Lease, Target

TRIES = 3  # a request that breaks workers must not meet them all
LAST_MOMENT_S = 0.1  # a prefill may still end; of two workers that fail, one may be the cause
ROOMS = 1 << 63  # SGLang's rooms are signed 64-bit numbers
RELEASE_S = 10.0
OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])  # values stay as the bytes that they were

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """One request. `body` is `content` read one level deep; `content` goes out where nothing
    in it has to change."""

    path: str
    content: bytes
    body: Body
    ask: Ask
    headers: Sequence[tuple[bytes, bytes]] = ()


class Taker(Protocol):
    """Takes in the answer of the worker that decodes; a status other than 200 never comes
    here. Once `begun`, no other worker can answer in its place."""

    @property
    def begun(self) -> bool: ...

    async def take(self, answer: Answer, lease: Lease) -> None: ...


class Routes(Protocol):
    """What is needed of a router, here or remote."""

    async def route(self, ask: Ask) -> Lease: ...


class Dispatcher:
    """Sends requests to the workers that the router grants."""

    def __init__(
        self, router: Routes, dialect: Dialect, client: Client, tasks: asyncio.TaskGroup
    ) -> None:
        """`tasks` owns what is still to be done for requests that were cancelled."""
        self._router, self._dialect = router, dialect
        self._client, self._tasks = client, tasks
        self._introduced = dict[Target, Body]()  # what prefill workers told of where to meet them
        self.retried = 0  # tries on another worker

    async def run(self, work: Work, taker: Taker) -> None:
        """One request to its end; another worker is tried while nothing has gone out.

        Raises RequestFailed with the engine's status and body, 503 where a worker broke, or
        what the router says when there is nobody to ask.
        """
        ask, last = work.ask, None
        for _ in range(TRIES):
            try:
                lease = await self._router.route(ask)
            except Exhausted:
                break
            try:
                return await self._attempt(lease, work, taker)
            except _Broken as e:
                if taker.begun:
                    raise
                log.warning("%s", e)
                self.retried += 1
                ask, last = msgspec.structs.replace(ask, exclude=(*ask.exclude, e.rank)), e
            finally:
                lease.release()
        raise last or RequestFailed("no worker is left to try", status=503)

    async def _attempt(self, lease: Lease, work: Work, taker: Taker) -> None:
        """On one pair of workers, for as long as they are there: an engine that ends, or a
        node that lost power, may never close its connections."""

        def leave(future: asyncio.Future[int]) -> None:
            there.reschedule(asyncio.get_running_loop().time())

        there = asyncio.timeout(None)
        try:
            async with there:
                lease.lost.add_done_callback(leave)
                try:
                    await self._both(lease, work, taker)
                finally:
                    lease.lost.remove_done_callback(leave)
        except TimeoutError as e:
            if not there.expired():
                raise
            rank = lease.lost.result()
            raise _Broken(rank, f"worker {rank} left with this request on it", 503) from e

    async def _both(self, lease: Lease, work: Work, taker: Taker) -> None:
        if lease.prefill is None:
            async with self._post(lease, lease.decode, work, work.content) as answer:
                return await taker.take(answer, lease)
        if isinstance(self._dialect, Concurrent):
            return await self._at_once(lease, lease.prefill, work, taker, self._dialect)
        handed = await self._hand_over(lease, lease.prefill, work, self._dialect)
        accepted = False
        try:
            content = msgspec.json.encode(handed)
            async with self._post(lease, lease.decode, work, content) as answer:
                accepted = True
                await taker.take(answer, lease)
        finally:
            # Refused or not: vLLM 0.32 frees what its handlers refuse, but not what they never saw
            # (a field of the wrong type), and both are a 400. Giving up blocks that are free
            # already costs a line in the prefill worker's log.
            if not accepted:
                release = self._release(lease.decode, work.path, handed, self._dialect)
                self._tasks.create_task(release)

    async def _at_once(
        self, lease: Lease, target: Target, work: Work, taker: Taker, dialect: Concurrent
    ) -> None:
        """The same request on both workers, which find each other; who fails ends both."""
        told = await self._introduction(lease, target, dialect)
        bodies = dialect.both(work.body, target.url, told, random.randrange(ROOMS))
        asked, handed = map(msgspec.json.encode, bodies)
        try:
            async with asyncio.TaskGroup() as sides:
                prefill = sides.create_task(self._fill(lease, target, work, taker, asked))
                async with _after_the_other():
                    async with self._post(lease, lease.decode, work, handed) as answer:
                        await taker.take(answer, lease)
                await asyncio.wait([prefill], timeout=LAST_MOMENT_S)
                prefill.cancel()
        except ExceptionGroup as failed:
            self._introduced.pop(target, None)
            raise failed.exceptions[0] from None

    async def _fill(
        self, lease: Lease, target: Target, work: Work, taker: Taker, content: bytes
    ) -> None:
        """The prefill worker's part of `_at_once`; an answer that has begun needs it no more."""
        try:
            async with _after_the_other(), self._post(lease, target, work, content) as answer:
                await answer.read()
            lease.prefilled()
        except RequestFailed as e:
            if not taker.begun:
                raise
            log.warning("after its part was done: %s", e)

    async def _introduction(self, lease: Lease, target: Target, dialect: Concurrent) -> Body:
        """Asked once in the life of a prefill worker."""
        if target not in self._introduced:
            sent = self._client.send("GET", target.url, dialect.introduction)
            async with self._good(lease, target, sent) as answer:
                self._introduced[target] = read_object(await answer.read(), target)
        return self._introduced[target]

    async def _hand_over(
        self, lease: Lease, target: Target, work: Work, dialect: Sequential
    ) -> Body:
        """The body for the decode worker. Who cancels this may come just after the prefill
        worker has done its part; its blocks would be kept for the whole lease."""
        prefill = self._tasks.create_task(self._prefill(lease, target, work, dialect))
        try:
            handed = await asyncio.shield(prefill)
        except asyncio.CancelledError:
            self._tasks.create_task(self._abandon(prefill, lease.decode, work.path, dialect))
            raise
        if isinstance(handed, RequestFailed):
            raise handed
        return handed

    async def _abandon(
        self,
        prefill: asyncio.Task[Body | RequestFailed],
        decode: Target,
        path: str,
        dialect: Sequential,
    ) -> None:
        """End a prefill that nobody waits for; blocks that it has made are given up."""
        await asyncio.wait([prefill], timeout=LAST_MOMENT_S)
        if not prefill.done():
            prefill.cancel()
        elif not isinstance(handed := prefill.result(), RequestFailed):
            await self._release(decode, path, handed, dialect)

    async def _release(self, decode: Target, path: str, handed: Body, dialect: Sequential) -> None:
        body = dialect.release(handed)
        if body is None:
            return
        try:
            async with asyncio.timeout(RELEASE_S):
                content = msgspec.json.encode(body)
                async with self._client.send("POST", decode.url, path, content) as answer:
                    await answer.read()
        except OSError as e:  # the lease of the blocks ends by itself
            log.warning("blocks stay until the end of their lease: %s", e or type(e).__name__)

    async def _prefill(
        self, lease: Lease, target: Target, work: Work, dialect: Sequential
    ) -> Body | RequestFailed:
        """A failure is an answer here: the task's owner must not end for it."""
        content = msgspec.json.encode(dialect.prefill(work.body))
        try:
            async with self._post(lease, target, work, content) as answer:
                body = await answer.read()
            lease.prefilled()
            return dialect.decode(work.body, read_object(body, target))
        except RequestFailed as e:
            return e

    def _post(
        self, lease: Lease, target: Target, work: Work, content: bytes
    ) -> AbstractAsyncContextManager[Answer]:
        sent = self._client.send("POST", target.url, work.path, content, work.headers)
        return self._good(lease, target, sent)

    @asynccontextmanager
    async def _good(
        self, lease: Lease, target: Target, sent: AbstractAsyncContextManager[Answer]
    ) -> AsyncIterator[Answer]:
        """A worker's answer with status 200. Its failures, also those on the way through the
        answer, become errors that name it."""
        try:
            async with sent as answer:
                if answer.status != 200:
                    what = f"worker {target.rank} answered {answer.status}"
                    raise _refused(target, what, answer.status, await answer.read())
                yield answer
        except OSError as e:
            lease.broken(target.rank)
            what = f"worker {target.rank} at {target.url}: {e or type(e).__name__}"
            raise _Broken(target.rank, what, 503) from e


class _Broken(RequestFailed):
    """A worker failed; another may not."""

    def __init__(self, rank: int, message: str, status: int, body: bytes = b"") -> None:
        super().__init__(message, status=status, body=body)
        self.rank = rank


@asynccontextmanager
async def _after_the_other() -> AsyncIterator[None]:
    """A worker that answers with an error may do so for the end of the other, which then is told
    in its place."""
    try:
        yield
    except _Broken as e:
        if e.body:
            await asyncio.sleep(LAST_MOMENT_S)
        raise


def _refused(target: Target, what: str, status: int, body: bytes) -> RequestFailed:
    if status >= 500:
        return _Broken(target.rank, what, status, body)
    return RequestFailed(what, status=status, body=body)


def read_object(content: bytes, target: Target) -> Body:
    """What an engine calls a success must be a JSON object. Raises RequestFailed."""
    try:
        return OBJECT.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        what = f"worker {target.rank} answered 200 with no JSON object: {e}"
        raise _Broken(target.rank, what, 502, content) from e


class Whole:
    """A taker that keeps the whole answer, for those who do not stream."""

    begun = False

    def __init__(self) -> None:
        self.content, self.body, self.rank = b"", Body(), -1

    async def take(self, answer: Answer, lease: Lease) -> None:
        self.content = await answer.read()
        self.body, self.rank = read_object(self.content, lease.decode), lease.decode.rank
