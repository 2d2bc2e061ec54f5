"""Workers that clients put to sleep and wake: the device's memory is free meanwhile."""

import asyncio
from collections.abc import Mapping

import msgspec

from hpc_dynamo.engines import SleepEndpoints, engine
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.head.workloads.workload import HeadContext
from hpc_dynamo.messages import WorkerReport, WorkerState

CHANGE_S = 300.0  # weights of any size to the host's memory, or back


class SleepController:
    """One change at a time. A worker that dies in its sleep is started again, awake."""

    def __init__(self, job: HeadContext) -> None:
        self._job, self._turn = job, asyncio.Lock()
        self._asleep = dict[int, str]()  # URLs, which are of one life, by rank

    @property
    def _workers(self) -> Mapping[int, WorkerReport]:
        return self._job.members.workers

    def with_sleep_state(self, worker: WorkerReport) -> WorkerReport:
        """With whether it sleeps."""
        sleeps = worker.state is WorkerState.ready and self._asleep.get(worker.rank) == worker.url
        return msgspec.structs.replace(worker, asleep=sleeps)

    async def set_asleep(self, rank: int, asleep: bool) -> bytes:
        """JSON of how the worker is then. A second time does nothing.

        Raises RequestFailed: 404 for none that is ready, 409 where it cannot sleep or does not
        come to rest, 502 where its engine fails.
        """
        async with self._turn:
            worker = self._ready(rank)
            if self.with_sleep_state(worker).asleep is not asleep:
                paths = self._paths(worker)
                await (self._sleep(worker, paths) if asleep else self._wake(worker, paths))
        return msgspec.json.encode({"rank": rank, "asleep": asleep})

    def _ready(self, rank: int) -> WorkerReport:
        routed = {m.rank for lane in self._job.routes.values() for m in lane.router.workers}
        here = {r: w for r, w in self._workers.items() if r in routed}
        ready = {r: w for r, w in here.items() if w.state is WorkerState.ready}
        if rank not in ready:
            known = ", ".join(map(str, sorted(ready)))
            raise RequestFailed(f"no worker {rank} is ready; those that are: {known}", status=404)
        return ready[rank]

    def _paths(self, worker: WorkerReport) -> SleepEndpoints:
        config = self._job.routes[worker.model].config
        paths = engine(config.engine.name).sleep_endpoints(config)
        if paths is None:
            what = (
                f"worker {worker.rank} cannot sleep: it was not started with engine.sleep_mode=true"
            )
            raise RequestFailed(what, status=409)
        return paths

    async def _sleep(self, worker: WorkerReport, paths: SleepEndpoints) -> None:
        """What is under way comes to its end first."""
        lane, done = self._job.routes[worker.model], False
        try:
            async with asyncio.timeout(lane.config.planner.drain_timeout_s):
                await lane.router.drain(worker.rank)
            await self._tell(worker, paths.sleep)
            self._asleep[worker.rank], done = worker.url, True
        except TimeoutError as e:
            limit = f"{lane.config.planner.drain_timeout_s:g} s (planner.drain_timeout_s)"
            what = f"worker {worker.rank} still has requests after {limit}"
            raise RequestFailed(what, status=409) from e
        finally:
            if not done:
                lane.router.set_role(worker.rank, worker.role)

    async def _wake(self, worker: WorkerReport, paths: SleepEndpoints) -> None:
        await self._tell(worker, paths.wake)
        del self._asleep[worker.rank]
        self._job.routes[worker.model].router.set_role(worker.rank, worker.role)

    async def _tell(self, worker: WorkerReport, path: str) -> None:
        what = f"worker {worker.rank} at {worker.url}{path}"
        try:
            async with asyncio.timeout(CHANGE_S):
                async with self._job.client.send("POST", worker.url, path, b"{}") as answer:
                    said = await answer.read()
        except OSError as e:  # TimeoutError is one
            raise RequestFailed(f"{what}: {e or type(e).__name__}", status=502) from e
        if answer.status != 200:
            raise RequestFailed(f"{what} answered {answer.status}", status=502, body=said)
