"""A whole job in virtual time: load, router, workers, planner."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from hpc_dynamo import config as c
from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.planner.collect import collect_signals
from hpc_dynamo.planner.signals import Decision, Signals
from hpc_dynamo.router import Limits as Bounds
from hpc_dynamo.router import Router
from hpc_dynamo.simulation import clock
from hpc_dynamo.simulation.kv_event_source import Told
from hpc_dynamo.simulation.load import Request
from hpc_dynamo.simulation.outcome import Outcome, Seen, Targets
from hpc_dynamo.simulation.pool import Flipping, Pool
from hpc_dynamo.simulation.request_flow import Lives
from hpc_dynamo.simulation.worker import Limits, Worker
from hpc_dynamo.timing_model import Timing


class Decide(Protocol):
    """The planner, as far as a job needs it."""

    def decide(self, seen: Signals) -> Decision: ...


@dataclass(frozen=True)
class Engine:
    """What is modelled of every worker; roles may differ in their timing."""

    limits: Limits
    timing: Timing
    timings: dict[Role, Timing] = field(default_factory=dict)

    def of(self, role: Role) -> Timing:
        return self.timings.get(role, self.timing)


@dataclass(frozen=True)
class Job:
    """What is simulated. `workers` by role; those of an aggregated job have that role."""

    engine: Engine
    workers: dict[Role, int]
    targets: Targets
    router: c.Router = field(default_factory=c.Router)
    bounds: Bounds = field(default_factory=Bounds)
    block_tokens: int = 512  # of the load; caches and router count in these
    flipping: Flipping = field(default_factory=Flipping)
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


def _nothing(seen: Seen) -> None:
    pass


def simulate(
    job: Job,
    requests: Sequence[Request],
    planner: Decide | None = None,
    ended: Callable[[Seen], None] = _nothing,
) -> Outcome:
    """Run the load in virtual time; `ended` is called with each request that is over.

    The same in every run, but for router policies that draw by chance.
    """
    return clock.run(_Running.run(job, requests, planner, ended))


class _Running:
    """One job, inside its event loop."""

    def __init__(self, job: Job, ended: Callable[[Seen], None]) -> None:
        loop = asyncio.get_running_loop()
        self._job, self._ended = job, ended
        router = c.Router(**{**vars(job.router), "block_tokens": job.block_tokens})
        self._router = Router(job.kind, router, job.bounds, loop.time)
        self._tokens = dict[int, bytes]()  # of blocks, by hash
        self._workers = {
            rank: Worker(job.engine.limits, job.engine.of(role), job.block_tokens)
            for rank, role in enumerate(job.ranks)
        }
        told = self._listen() if job.router.kv_events else {}
        timings = {role: job.engine.of(role) for role in Role}
        self._pool = Pool(self._router, self._workers, told, timings, job.flipping)
        self._lives = Lives(self._router, self._workers, self._over)
        self._seen, self._decisions = list[Seen](), list[Decision]()

    def _listen(self) -> dict[int, Told]:
        told = dict[int, Told]()
        for rank, worker in self._workers.items():
            told[rank] = Told(self._router.caches, rank, worker.cache, self._tokens)
            worker.on_store = told[rank].stored
        return told

    @classmethod
    async def run(
        cls,
        job: Job,
        requests: Sequence[Request],
        planner: Decide | None,
        ended: Callable[[Seen], None],
    ) -> Outcome:
        self = cls(job, ended)
        for rank, role in enumerate(job.ranks):
            await self._pool.join(rank, role)
        async with asyncio.TaskGroup() as tasks:
            planning = tasks.create_task(self._plan(planner, tasks)) if planner else None
            await self._load(requests)
            if planning:
                planning.cancel()
        return self._outcome()

    async def _load(self, requests: Sequence[Request]) -> None:
        """An open loop: each at its own time, however many are under way."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                if request.at > loop.time():
                    await asyncio.sleep(request.at - loop.time())
                tasks.create_task(self._lives.lead(request, self._hashes(request)))

    def _hashes(self, request: Request) -> bytes:
        hashes, tokens = request.hashes, request.tokens
        for each, block in zip(memoryview(hashes).cast("Q"), tokens, strict=True):
            self._tokens[each] = block
        return hashes

    def _over(self, seen: Seen) -> None:
        self._seen.append(seen)
        self._ended(seen)

    async def _plan(self, planner: Decide, tasks: asyncio.TaskGroup) -> None:
        """As head.reshape does: look, decide, act; changes of role go on meanwhile."""
        loop, pool = asyncio.get_running_loop(), self._pool
        while True:
            await asyncio.sleep(self._job.interval_s)
            most = self._job.engine.limits.sequences
            seen = collect_signals(self._router, pool.loads(), len(pool.moving), most)
            seen = msgspec.structs.replace(seen, at=loop.time())
            decision = planner.decide(seen)
            self._decisions.append(decision)
            move = decision.move
            for rank in pool.chosen(move):
                assert move
                assert move.old
                assert move.new
                tasks.create_task(pool.flip(rank, move.old, move.new))

    def _outcome(self) -> Outcome:
        job = self._job
        return Outcome(
            seen=self._seen,
            targets=job.targets,
            gpus=len(job.ranks) * job.worker_gpus,
            seconds=max((s.end for s in self._seen), default=0.0),
            flips=self._pool.flips,
            failed=self._pool.failed,
            roles=self._pool.history,
            decisions=self._decisions,
        )
