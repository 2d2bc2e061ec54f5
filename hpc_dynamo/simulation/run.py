"""A whole job in virtual time: load, router, workers, planner."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from hpc_dynamo import config as c
from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.planner.collect import collect_signals
from hpc_dynamo.planner.signals import PlannerDecision, Signals
from hpc_dynamo.router import AdmissionLimits as Bounds
from hpc_dynamo.router import Router
from hpc_dynamo.simulation import clock
from hpc_dynamo.simulation.kv_event_source import KvEventSource
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.pool import RoleChangeModel, WorkerPool
from hpc_dynamo.simulation.request_flow import RequestFlow
from hpc_dynamo.simulation.result import LatencyTargets, RequestResult, SimulationResult
from hpc_dynamo.simulation.worker import EngineSizes, SimulatedWorker
from hpc_dynamo.timing_model import TimingModel


class DecidesRoles(Protocol):
    """The planner, as far as a job needs it."""

    def decide(self, seen: Signals) -> PlannerDecision: ...


@dataclass(frozen=True)
class EngineModel:
    """What is modelled of every worker; roles may differ in their timing."""

    limits: EngineSizes
    timing: TimingModel
    timings: dict[Role, TimingModel] = field(default_factory=dict)

    def of(self, role: Role) -> TimingModel:
        return self.timings.get(role, self.timing)


@dataclass(frozen=True)
class SimulatedJob:
    """What is simulated. `workers` by role; those of an aggregated job have that role."""

    engine: EngineModel
    workers: dict[Role, int]
    targets: LatencyTargets
    router: c.Router = field(default_factory=c.Router)
    limits: Bounds = field(default_factory=Bounds)
    block_tokens: int = 512  # of the load; caches and router count in these
    role_change: RoleChangeModel = field(default_factory=RoleChangeModel)
    interval_s: float = 30.0  # of the planner
    worker_gpus: int = 1

    @property
    def kind(self) -> TopologyKind:
        return (
            TopologyKind.aggregated
            if Role.aggregated in self.workers
            else TopologyKind.disaggregated
        )

    @property
    def ranks(self) -> list[Role]:
        return [role for role, count in self.workers.items() for _ in range(count)]


def _nothing(seen: RequestResult) -> None:
    pass


def simulate(
    job: SimulatedJob,
    requests: Sequence[TraceRequest],
    planner: DecidesRoles | None = None,
    ended: Callable[[RequestResult], None] = _nothing,
) -> SimulationResult:
    """Run the load in virtual time; `ended` is called with each request that is over.

    The same in every run, but for router policies that draw by chance.
    """
    return clock.run(_Running.run(job, requests, planner, ended))


class _Running:
    """One job, inside its event loop."""

    def __init__(self, job: SimulatedJob, ended: Callable[[RequestResult], None]) -> None:
        loop = asyncio.get_running_loop()
        self._job, self._ended = job, ended
        router = c.Router(**{**vars(job.router), "block_tokens": job.block_tokens})
        self._router = Router(job.kind, router, job.limits, loop.time)
        self._tokens = dict[int, bytes]()  # of blocks, by hash
        self._workers = {
            rank: SimulatedWorker(job.engine.limits, job.engine.of(role), job.block_tokens)
            for rank, role in enumerate(job.ranks)
        }
        told = self._listen() if job.router.kv_events else {}
        timings = {role: job.engine.of(role) for role in Role}
        self._pool = WorkerPool(self._router, self._workers, told, timings, job.role_change)
        self._lives = RequestFlow(self._router, self._workers, self._over)
        self._seen, self._decisions = list[RequestResult](), list[PlannerDecision]()

    def _listen(self) -> dict[int, KvEventSource]:
        told = dict[int, KvEventSource]()
        for rank, worker in self._workers.items():
            told[rank] = KvEventSource(self._router.kv_state, rank, worker.cache, self._tokens)
            worker.on_store = told[rank].on_store
        return told

    @classmethod
    async def run(
        cls,
        job: SimulatedJob,
        requests: Sequence[TraceRequest],
        planner: DecidesRoles | None,
        ended: Callable[[RequestResult], None],
    ) -> SimulationResult:
        self = cls(job, ended)
        for rank, role in enumerate(job.ranks):
            await self._pool.add_worker(rank, role)
        async with asyncio.TaskGroup() as tasks:
            planning = tasks.create_task(self._plan(planner, tasks)) if planner else None
            await self._load(requests)
            if planning:
                planning.cancel()
        return self._outcome()

    async def _load(self, requests: Sequence[TraceRequest]) -> None:
        """An open loop: each at its own time, however many are under way."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                if request.at > loop.time():
                    await asyncio.sleep(request.at - loop.time())
                tasks.create_task(self._lives.serve(request, self._hashes(request)))

    def _hashes(self, request: TraceRequest) -> bytes:
        hashes, tokens = request.hashes, request.block_token_ids
        for each, block in zip(memoryview(hashes).cast("Q"), tokens, strict=True):
            self._tokens[each] = block
        return hashes

    def _over(self, seen: RequestResult) -> None:
        self._seen.append(seen)
        self._ended(seen)

    async def _plan(self, planner: DecidesRoles, tasks: asyncio.TaskGroup) -> None:
        """As head.reshape does: look, decide, act; changes of role go on meanwhile."""
        loop, pool = asyncio.get_running_loop(), self._pool
        while True:
            await asyncio.sleep(self._job.interval_s)
            most = self._job.engine.limits.max_sequences
            seen = collect_signals(self._router, pool.loads(), len(pool.changing_role), most)
            seen = msgspec.structs.replace(seen, at=loop.time())
            decision = planner.decide(seen)
            self._decisions.append(decision)
            move = decision.move
            for rank in pool.ranks_to_move(move):
                assert move
                assert move.old
                assert move.new
                tasks.create_task(pool.change_role(rank, move.old, move.new))

    def _outcome(self) -> SimulationResult:
        job = self._job
        return SimulationResult(
            results=self._seen,
            targets=job.targets,
            gpus=len(job.ranks) * job.worker_gpus,
            seconds=max((s.ended_at for s in self._seen), default=0.0),
            role_changes=self._pool.role_changes,
            failed_role_changes=self._pool.failed_role_changes,
            roles=self._pool.history,
            decisions=self._decisions,
        )
