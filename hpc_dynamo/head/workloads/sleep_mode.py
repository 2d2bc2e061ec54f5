"""Sleep mode: clients put workers to sleep, which frees their GPU memory, and wake them."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from hpc_dynamo.engine_errors import append_engine_error
from hpc_dynamo.engines import SleepEndpoints, engine
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.head.workloads.workload import HeadContext
from hpc_dynamo.http import MAX_REPORT_BYTES
from hpc_dynamo.messages import WorkerReport, WorkerState

TIMEOUT_S = 300.0  # to move weights to host memory, or back


class SleepController:
    """Puts workers to sleep and wakes them, one at a time. A restarted worker is awake."""

    def __init__(self, context: HeadContext) -> None:
        self._context, self._lock = context, asyncio.Lock()

    @property
    def _workers(self) -> Mapping[int, WorkerReport]:
        return self._context.members.workers

    async def set_asleep(self, rank: int, asleep: bool) -> bytes:
        """Put a worker to sleep or wake it; return its state as JSON for the client.

        Raises RequestFailed: 404 if it is not ready, 409 if it cannot sleep or its requests do
        not finish in time, 502 if its engine fails.
        """
        async with self._lock:
            worker = self._ready(rank)
            if worker.asleep is not asleep:
                paths = self._paths(worker)
                await (self._sleep(worker, paths) if asleep else self._wake(worker, paths))
        return msgspec.json.encode({"rank": rank, "asleep": asleep})

    def _ready(self, rank: int) -> WorkerReport:
        routes = self._context.routes.values()
        routed = {worker.rank for route in routes for worker in route.router.workers}
        state = WorkerState.ready
        ready = {r: w for r, w in self._workers.items() if r in routed and w.state is state}
        if rank not in ready:
            known = ", ".join(map(str, sorted(ready)))
            raise RequestFailed(f"no worker {rank} is ready; those that are: {known}", status=404)
        return ready[rank]

    def _paths(self, worker: WorkerReport) -> SleepEndpoints:
        own = self._context.routes[worker.model].config.engine
        adapter = engine(own.name)
        paths = adapter.sleep_endpoints(own)
        if paths is None:
            what = f"worker {worker.rank} was not started with engine.sleep_mode=true"
            raise RequestFailed(what, status=409)
        reported = replace(own, version=worker.version or own.version)
        if obstacle := adapter.sleep_obstacle(reported, worker.role):
            raise RequestFailed(f"worker {worker.rank} cannot sleep: {obstacle}", status=409)
        return paths

    async def _sleep(self, worker: WorkerReport, paths: SleepEndpoints) -> None:
        """Put a worker to sleep once its requests have finished."""
        route, done = self._context.routes[worker.model], False
        try:
            async with asyncio.timeout(route.config.planner.drain_timeout_s):
                await route.router.drain(worker.rank)
            await self._context.members.set_asleep(worker.rank, True)
            await self._post(worker, paths.sleep)
            done = True
        except TimeoutError as e:
            limit = f"{route.config.planner.drain_timeout_s:g} s (planner.drain_timeout_s)"
            what = f"worker {worker.rank} still has requests after {limit}"
            raise RequestFailed(what, status=409) from e
        finally:
            if not done:
                await self._context.members.set_asleep(worker.rank, False)
                route.router.set_role(worker.rank, worker.role)

    async def _wake(self, worker: WorkerReport, paths: SleepEndpoints) -> None:
        await self._post(worker, paths.wake)
        await self._context.members.set_asleep(worker.rank, False)
        self._context.routes[worker.model].router.set_role(worker.rank, worker.role)

    async def _post(self, worker: WorkerReport, path: str) -> None:
        what = f"worker {worker.rank} at {worker.url}{path}"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with self._context.client.send("POST", worker.url, path, b"{}") as answer:
                    body = await answer.read(MAX_REPORT_BYTES)
        except OSError as e:  # TimeoutError is one
            raise RequestFailed(f"{what}: {e or type(e).__name__}", status=502) from e
        if answer.status != 200:
            what = append_engine_error(f"{what} answered {answer.status}", body)
            raise RequestFailed(what, status=502, body=body)
