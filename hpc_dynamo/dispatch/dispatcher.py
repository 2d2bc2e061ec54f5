"""Sends requests to workers that the router grants."""

import asyncio
import logging
from typing import Protocol

import msgspec

from hpc_dynamo.dispatch.concurrent_handoff import AtOnce
from hpc_dynamo.dispatch.fan_out import fan_out
from hpc_dynamo.dispatch.sequential_handoff import InTurn
from hpc_dynamo.dispatch.workers import Broken, Sharing, Taker, Work, Workers
from hpc_dynamo.engines import Concurrent, Dialect
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import Client
from hpc_dynamo.router import Ask, Exhausted, Lease

TRIES = 3  # a request that breaks workers must not meet them all

log = logging.getLogger(__name__)


class Routes(Protocol):
    """What is needed of a router, here or remote."""

    async def route(self, ask: Ask) -> Lease: ...


class Dispatcher:
    """Sends requests to the workers that the router grants."""

    def __init__(
        self,
        router: Routes,
        dialect: Dialect,
        client: Client,
        tasks: asyncio.TaskGroup,
        tries: int = TRIES,
    ) -> None:
        """`tasks` owns the cleanup of cancelled requests. `tries` is the number of workers that may
        fail with a request before the request fails."""
        self._tries = tries
        self._router, self._workers = router, Workers(client)
        self._sharing = _sharing(dialect, self._workers, tasks)
        self.retried = 0  # tries on another worker

    async def run(self, work: Work, taker: Taker) -> None:
        """One request to its end; another worker is tried while nothing has gone out.

        Raises RequestFailed with the engine's status and body, 503 where a worker broke, or
        what the router says when there is nobody to ask.
        """
        if work.samples > 1:
            await fan_out(self._run, work, taker)
        else:
            await self._run(work, taker)

    async def _run(self, work: Work, taker: Taker) -> None:
        ask, last, failed = work.ask, None, 0
        while failed < self._tries:
            try:
                lease = await self._router.route(ask)
            except Exhausted:
                break
            try:
                return await self._attempt(lease, work, taker)
            except Broken as e:
                if taker.begun:
                    raise
                log.warning("%s", e)
                self.retried += 1
                failed += e.reached
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
                    await self._serve(lease, work, taker)
                finally:
                    lease.lost.remove_done_callback(leave)
        except TimeoutError as e:
            if not there.expired():
                raise
            rank = lease.lost.result()
            raise Broken(rank, f"worker {rank} left with this request on it", 503) from e

    async def _serve(self, lease: Lease, work: Work, taker: Taker) -> None:
        if lease.prefill is not None:
            await self._sharing.run(lease, lease.prefill, work, taker)
        else:
            async with self._workers.post(lease, lease.decode, work, work.content) as answer:
                await taker.take(answer, lease)


def _sharing(dialect: Dialect, workers: Workers, tasks: asyncio.TaskGroup) -> Sharing:
    if isinstance(dialect, Concurrent):
        return AtOnce(workers, dialect)
    return InTurn(workers, dialect, tasks)
