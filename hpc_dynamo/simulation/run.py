"""Simulates a job in virtual time: load, router, workers and planner."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from hpc_dynamo import config as c
from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.messages import ONE_CACHE, PrefixCaches
from hpc_dynamo.planner.collect import collect_signals
from hpc_dynamo.planner.signals import PlannerDecision, Signals
from hpc_dynamo.router import AdmissionLimits, RequestRouter
from hpc_dynamo.simulation import clock
from hpc_dynamo.simulation.kv_event_source import KvEventSource
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.pool import RoleChangeModel, WorkerPool
from hpc_dynamo.simulation.ranks import RankedWorker
from hpc_dynamo.simulation.request_flow import RequestFlow
from hpc_dynamo.simulation.result import LatencyTargets, RequestResult, SimulationResult
from hpc_dynamo.simulation.worker import EngineSizes, SimulatedWorker
from hpc_dynamo.timing_model import TimingModel


class DecidesRoles(Protocol):
    """Planner interface of a simulated job."""

    def decide(self, signals: Signals) -> PlannerDecision: ...


@dataclass(frozen=True)
class EngineModel:
    """Model of every worker; roles may have their own timing."""

    sizes: EngineSizes
    timing: TimingModel
    timings: dict[Role, TimingModel] = field(default_factory=dict)

    def of(self, role: Role) -> TimingModel:
        return self.timings.get(role, self.timing)


@dataclass(frozen=True)
class SimulatedJob:
    """Job to simulate. `workers` has the number of workers by role.

    Each worker has an engine for each of its `caches`, its data-parallel ranks. Ranks publish KV
    events only if requests can be steered to them.
    """

    engine: EngineModel
    workers: dict[Role, int]
    targets: LatencyTargets
    router: c.Router = field(default_factory=c.Router)
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    block_tokens: int = 512  # block size of load, caches and router
    role_change: RoleChangeModel = field(default_factory=RoleChangeModel)
    interval_s: float = 30.0  # planner interval
    worker_gpus: int = 1
    caches: PrefixCaches = ONE_CACHE

    @property
    def kind(self) -> TopologyKind:
        aggregated = Role.aggregated in self.workers
        return TopologyKind.aggregated if aggregated else TopologyKind.disaggregated

    @property
    def ranks(self) -> list[Role]:
        return [role for role, count in self.workers.items() for _ in range(count)]


def _ignore(result: RequestResult) -> None:
    pass


def simulate(
    job: SimulatedJob,
    requests: Sequence[TraceRequest],
    planner: DecidesRoles | None = None,
    on_result: Callable[[RequestResult], None] = _ignore,
) -> SimulationResult:
    """Run the load in virtual time and return the result.

    `on_result` is called with the result of each request. Results are reproducible, except for
    policies that draw at random.
    """
    return clock.run(_Run.run(job, requests, planner, on_result))


class _Run:
    """State of a job inside its event loop."""

    def __init__(self, job: SimulatedJob, on_result: Callable[[RequestResult], None]) -> None:
        loop = asyncio.get_running_loop()
        self._job, self._callback = job, on_result
        router = c.Router(**{**vars(job.router), "block_tokens": job.block_tokens})
        self._router = RequestRouter(job.kind, router, job.limits, loop.time)
        self._tokens = dict[int, bytes]()  # hash of a block -> its token ids
        self._workers = {rank: self._new_worker(role) for rank, role in enumerate(job.ranks)}
        has_events = job.router.kv_events and job.caches.steered
        sources = self._event_sources() if has_events else {}
        timings = {role: job.engine.of(role) for role in Role}
        self._pool = WorkerPool(
            self._router, self._workers, sources, timings, job.role_change, job.caches
        )
        self._request_flow = RequestFlow(self._router, self._workers, self._on_result)
        self._results, self._decisions = list[RequestResult](), list[PlannerDecision]()

    def _new_worker(self, role: Role) -> RankedWorker:
        job = self._job
        parts = (job.engine.sizes, job.engine.of(role), job.block_tokens)
        return RankedWorker([SimulatedWorker(*parts) for _ in range(job.caches.count)])

    def _event_sources(self) -> dict[int, list[KvEventSource]]:
        sources, state = dict[int, list[KvEventSource]](), self._router.kv_state
        for rank, worker in self._workers.items():
            one, sources[rank] = len(worker.ranks) == 1, []
            for dp_rank, engine in enumerate(worker.ranks):
                key = rank if one else (rank, dp_rank)
                source = KvEventSource(state, key, engine.cache, self._tokens)
                engine.on_store = source.on_store
                sources[rank].append(source)
        return sources

    @classmethod
    async def run(
        cls,
        job: SimulatedJob,
        requests: Sequence[TraceRequest],
        planner: DecidesRoles | None,
        on_result: Callable[[RequestResult], None],
    ) -> SimulationResult:
        self = cls(job, on_result)
        for rank, role in enumerate(job.ranks):
            await self._pool.add_worker(rank, role)
        async with asyncio.TaskGroup() as tasks:
            planning = tasks.create_task(self._plan(planner, tasks)) if planner else None
            await self._load(requests)
            if planning:
                planning.cancel()
        return self._result()

    async def _load(self, requests: Sequence[TraceRequest]) -> None:
        """Start each request at its time, for any number of active requests (open loop)."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                if request.at > loop.time():
                    await asyncio.sleep(request.at - loop.time())
                tasks.create_task(self._request_flow.serve(request, self._hashes(request)))

    def _hashes(self, request: TraceRequest) -> bytes:
        hashes, tokens = request.hashes, request.block_token_ids
        for block_hash, block in zip(memoryview(hashes).cast("Q"), tokens, strict=True):
            self._tokens[block_hash] = block
        return hashes

    def _on_result(self, result: RequestResult) -> None:
        self._results.append(result)
        self._callback(result)

    async def _plan(self, planner: DecidesRoles, tasks: asyncio.TaskGroup) -> None:
        """Collect, decide and act each interval, as the head's PlannerLoop does."""
        loop, pool = asyncio.get_running_loop(), self._pool
        while True:
            await asyncio.sleep(self._job.interval_s)
            changing = len(pool.changing_role)
            limit = self._job.engine.sizes.max_sequences * self._job.caches.count
            signals = collect_signals(self._router, pool.loads(), changing, limit)
            decision = planner.decide(msgspec.structs.replace(signals, at=loop.time()))
            self._decisions.append(decision)
            move = decision.move
            for rank in pool.ranks_to_move(move):
                assert move
                assert move.old
                assert move.new
                tasks.create_task(pool.change_role(rank, move.old, move.new))

    def _result(self) -> SimulationResult:
        job = self._job
        return SimulationResult(
            results=self._results,
            targets=job.targets,
            gpus=len(job.ranks) * job.worker_gpus,
            seconds=max((s.ended_at for s in self._results), default=0.0),
            role_changes=self._pool.role_changes,
            failed_role_changes=self._pool.failed_role_changes,
            roles=self._pool.history,
            decisions=self._decisions,
        )
