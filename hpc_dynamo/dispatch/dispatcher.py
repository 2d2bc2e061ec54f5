"""Sends requests to workers that the router grants."""

import asyncio
import logging
from typing import Protocol

import msgspec

from hpc_dynamo.dispatch.concurrent_handoff import ConcurrentHandoff
from hpc_dynamo.dispatch.fan_out import fan_out
from hpc_dynamo.dispatch.sequential_handoff import SequentialHandoff
from hpc_dynamo.dispatch.worker_client import (
    EngineRequest,
    Handoff,
    ResponseSink,
    WorkerClient,
    WorkerFailed,
)
from hpc_dynamo.engines import ConcurrentProtocol, PdProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import AllWorkersTried, Lease, RoutingRequest

MAX_ATTEMPTS = 3  # a request that breaks workers must not meet them all

log = logging.getLogger(__name__)


class RequestRouter(Protocol):
    """What is needed of a router, here or remote."""

    async def route(self, ask: RoutingRequest) -> Lease: ...


class Dispatcher:
    """Sends requests to the workers that the router grants."""

    def __init__(
        self,
        router: RequestRouter,
        dialect: PdProtocol,
        client: HttpClient,
        tasks: asyncio.TaskGroup,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        """`tasks` owns the cleanup of cancelled requests. `tries` is the number of workers that may
        fail with a request before the request fails."""
        self._tries = max_attempts
        self._router, self._workers = router, WorkerClient(client)
        self._sharing = _sharing(dialect, self._workers, tasks)
        self.retries = 0  # tries on another worker

    async def run(self, work: EngineRequest, taker: ResponseSink) -> None:
        """One request to its end; another worker is tried while nothing has gone out.

        Raises RequestFailed with the engine's status and body, 503 where a worker broke, or
        what the router says when there is nobody to ask.
        """
        if work.samples > 1:
            await fan_out(self._run, work, taker)
        else:
            await self._run(work, taker)

    async def _run(self, work: EngineRequest, taker: ResponseSink) -> None:
        ask, last, failed = work.routing, None, 0
        while failed < self._tries:
            try:
                lease = await self._router.route(ask)
            except AllWorkersTried:
                break
            try:
                return await self._attempt(lease, work, taker)
            except WorkerFailed as e:
                if taker.started:
                    raise
                log.warning("%s", e)
                self.retries += 1
                failed += e.reached
                ask, last = msgspec.structs.replace(ask, exclude=(*ask.exclude, e.rank)), e
            finally:
                lease.release()
        raise last or RequestFailed("no worker is left to try", status=503)

    async def _attempt(self, lease: Lease, work: EngineRequest, taker: ResponseSink) -> None:
        """On one pair of workers, for as long as they are there: an engine that ends, or a
        node that lost power, may never close its connections."""

        def leave(future: asyncio.Future[int]) -> None:
            there.reschedule(asyncio.get_running_loop().time())

        there = asyncio.timeout(None)
        try:
            async with there:
                lease.worker_lost.add_done_callback(leave)
                try:
                    await self._serve(lease, work, taker)
                finally:
                    lease.worker_lost.remove_done_callback(leave)
        except TimeoutError as e:
            if not there.expired():
                raise
            rank = lease.worker_lost.result()
            raise WorkerFailed(rank, f"worker {rank} left with this request on it", 503) from e

    async def _serve(self, lease: Lease, work: EngineRequest, taker: ResponseSink) -> None:
        if lease.prefill is not None:
            await self._sharing.run(lease, lease.prefill, work, taker)
        else:
            async with self._workers.post(lease, lease.decode, work, work.content) as answer:
                await taker.receive(answer, lease)


def _sharing(dialect: PdProtocol, workers: WorkerClient, tasks: asyncio.TaskGroup) -> Handoff:
    if isinstance(dialect, ConcurrentProtocol):
        return ConcurrentHandoff(workers, dialect)
    return SequentialHandoff(workers, dialect, tasks)
