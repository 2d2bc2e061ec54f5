"""Sends requests to the workers that the router grants."""

import asyncio
import logging
from typing import Protocol

import msgspec

from hpc_dynamo.dispatch.concurrent_handoff import ConcurrentHandoff
from hpc_dynamo.dispatch.fan_out import fan_out
from hpc_dynamo.dispatch.request_abort import RequestAborter
from hpc_dynamo.dispatch.sequential_handoff import SequentialHandoff
from hpc_dynamo.dispatch.worker_client import (
    EngineRequest,
    Handoff,
    ResponseSink,
    UnhandledException,
    WorkerClient,
    WorkerFailed,
    WorkerLost,
)
from hpc_dynamo.engines import ConcurrentProtocol, PdProtocol
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import AllWorkersTried, Lease, RoutingRequest

MAX_ATTEMPTS = 2  # workers that a harmful request can crash

log = logging.getLogger(__name__)


class LeaseProvider(Protocol):
    """Grants workers: a RequestRouter in this process, or a RemoteRouter."""

    async def route(self, request: RoutingRequest) -> Lease: ...


class Dispatcher:
    """Executes requests on the workers that the router grants.

    `tasks` owns the cleanup of cancelled requests. A request fails after `max_attempts` workers
    have failed with it. `retries` counts attempts after the first.
    """

    def __init__(
        self,
        router: LeaseProvider,
        protocol: PdProtocol,
        client: HttpClient,
        tasks: asyncio.TaskGroup,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._max_attempts = max_attempts
        self._router, self._workers = router, WorkerClient(client)
        self._handoff = _handoff(protocol, self._workers, tasks)
        self._aborter = RequestAborter(client, protocol, tasks)
        self.retries = 0

    async def run(
        self, request: EngineRequest, sink: ResponseSink, *, max_attempts: int | None = None
    ) -> None:
        """Execute a request. Until the response has started, a failed worker is replaced.

        `max_attempts` replaces that of the dispatcher.

        Raises RequestFailed with the engine's status and body, with 503 if a worker failed, or the
        router's error if it grants no worker. If two attempts end with the same exception of the
        engine, the status is 400.
        """
        if request.samples > 1:
            await fan_out(self._run, request, sink)
        else:
            await self._run(request, sink, max_attempts)

    async def _run(
        self, request: EngineRequest, sink: ResponseSink, max_attempts: int | None = None
    ) -> None:
        routing, error, failures, lost = request.routing, None, 0, set[int]()
        deaths = 0
        while failures < (max_attempts or self._max_attempts):
            try:
                lease = await self._router.route(routing)
            except AllWorkersTried:
                break
            try:
                return await self._attempt(lease, request, sink)
            except WorkerFailed as e:
                e.deaths = deaths = deaths + e.deaths
                if sink.started:
                    raise
                log.warning("%s", e)
                if isinstance(e, UnhandledException):
                    e.raise_if_repeated(error)
                self.retries += 1
                failures += e.reached
                error = e
                if isinstance(e, WorkerLost | UnhandledException) and e.rank not in lost:
                    lost.add(e.rank)  # once it has restarted, it may be tried again
                    continue
                routing = msgspec.structs.replace(routing, exclude=(*routing.exclude, e.rank))
            finally:
                lease.release()
        raise error or RequestFailed("no worker is left to try", status=503)

    async def _attempt(self, lease: Lease, request: EngineRequest, sink: ResponseSink) -> None:
        """Execute a request on leased workers until one of them leaves the job.

        A node that loses power never closes its connections.
        """

        def expire(future: asyncio.Future[int]) -> None:
            timeout.reschedule(asyncio.get_running_loop().time())

        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                lease.worker_lost.add_done_callback(expire)
                try:
                    with self._aborter.abortable(lease, request) as named:
                        await self._execute(lease, named, sink)
                finally:
                    lease.worker_lost.remove_done_callback(expire)
        except TimeoutError as e:
            if not timeout.expired():
                raise
            rank = lease.worker_lost.result()
            left = WorkerLost(rank, f"worker {rank} left during this request", 503)
            left.deaths = 0  # its node was lost, or it was taken out of service
            raise left from e

    async def _execute(self, lease: Lease, request: EngineRequest, sink: ResponseSink) -> None:
        if lease.prefill is not None:
            await self._handoff.run(lease, lease.prefill, request, sink)
        else:
            sent = self._workers.post(lease, lease.decode, request, request.content)
            async with sent as response:
                await sink.receive(response, lease)


def _handoff(protocol: PdProtocol, workers: WorkerClient, tasks: asyncio.TaskGroup) -> Handoff:
    if isinstance(protocol, ConcurrentProtocol):
        return ConcurrentHandoff(workers, protocol)
    return SequentialHandoff(workers, protocol, tasks)
