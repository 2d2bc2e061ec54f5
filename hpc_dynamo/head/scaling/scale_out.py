"""Further jobs beside the run's own: asked for, admitted and given back as the planner wants it."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial

from msgspec.structs import replace

from hpc_dynamo import jsonl, launch
from hpc_dynamo.config import Role, walltime_minutes
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.scaling.extra_job import ExtraJob
from hpc_dynamo.head.scaling.role_change import min_workers
from hpc_dynamo.launch import JobState
from hpc_dynamo.launch.extra_jobs import stop_leftover_jobs
from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, Status
from hpc_dynamo.planner.scale_out import Budget, ScaleOutPolicy, ScaleOutRecord, ScaleOutStep
from hpc_dynamo.planner.signals import PlannerDecision, RoleMove
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt, ExtraJobFolder
from hpc_dynamo.topology import plan_extra_job

TICK_S = 0.2
STILL_TICKS = 150  # that a job which Slurm ends soon waits for changes of role to end
USELESS = "none of its workers is left"

log = logging.getLogger(__name__)


class ScaleOutController:
    """Of one attempt. `moving` are ranks that change their role just now."""

    def __init__(
        self,
        attempt: Attempt,
        router: Router,
        members: Membership,
        ends_at: float | None,
        moving: Callable[[], Collection[int]],
    ) -> None:
        self._attempt, self._config = attempt, attempt.config()
        self._router, self._members, self._ends_at = router, members, ends_at
        self._moving, self._grow = moving, self._config.planner.scale_out
        layout = attempt.plan()
        roles = [role for role, _ in self._config.topology.pools]
        self._plans = {
            r: plan_extra_job(self._config, layout, r, self._grow.nodes_per_job) for r in roles
        }
        each = {role: len(plan.workers) for role, plan in self._plans.items()}
        self._rule = ScaleOutPolicy(self._config.planner, each)
        self._next_rank = 1 + max(worker.rank for worker in layout.workers)
        self._next_node = layout.nodes
        self._jobs = dict[int, ExtraJob]()
        self._former_hours = 0.0  # of jobs that are not ours to look after
        self._decisions = asyncio.Queue[PlannerDecision]()
        self._failed, self._going = set[ExtraJob](), set[ExtraJob]()  # told to end
        self._said, self._ending = "", False

    def on_decision(self, decision: PlannerDecision) -> None:
        """What the planner made of the last interval."""
        self._decisions.put_nowait(decision)

    def extend_status(self, status: Status) -> Status:
        """Those that there are; also the newest that ever was, where it failed."""
        newest = list(self._jobs.values())[-1:]
        shown = [*self._live, *(job for job in newest if job.failed)]
        extra_jobs = tuple(job.status for job in shown)
        return replace(status, extra_jobs=extra_jobs, node_hours=self.node_hours)

    @property
    def node_hours(self) -> float:
        """Of all further jobs that the run ever had."""
        return self._former_hours + sum(j.status.node_hours for j in self._jobs.values())

    @property
    def _live(self) -> list[ExtraJob]:
        return [job for job in self._jobs.values() if job.state is not ExtraJobState.ended]

    async def run(self) -> None:
        """Until cancelled; `end` comes before that."""
        try:
            await asyncio.to_thread(self._take_stock)
        except (HpcDynamoError, OSError) as e:
            log.warning("what former heads left behind is not all known: %s", e)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mind_warnings(group), name="growth-warnings")
            while True:
                decision = await self._decisions.get()
                if not self._ending:
                    await self._act(decision, group)

    async def end(self, why: str) -> None:
        """No more are asked for; those that there are end now."""
        self._ending = True
        async with asyncio.TaskGroup() as group:
            for job in self._live:
                group.create_task(job.end_with_run(why))

    # What former heads left.

    def _take_stock(self) -> None:
        for attempt in self._attempt.run.attempts():
            ours, left = attempt.number == self._attempt.number, attempt.extra_jobs()
            if left and (ours or _is_over(attempt)):
                stop_leftover_jobs(left, self._config.cluster.heartbeat_timeout_s)
            for job in left:
                self._count(job, ours=ours)

    def _count(self, job: ExtraJobFolder, *, ours: bool) -> None:
        if state := job.state():
            self._former_hours += state.node_hours
        if ours:  # of a former life of this job
            plan = job.plan()
            self._next_rank = max(self._next_rank, *(w.rank + 1 for w in plan.workers))
            self._next_node = max(self._next_node, plan.first_node + plan.nodes)

    # One interval.

    async def _act(self, decision: PlannerDecision, group: asyncio.TaskGroup) -> None:
        lack, now = decision.gap, time.time()
        if lack is None:
            return
        await self._learn(now, group)
        here = [job for job in self._live if job not in self._going]
        step = self._rule.decide(now, lack, [job.planner_view() for job in here], self._room())
        if step.reason and step.reason != self._said:
            log.info("growth: %s", step.reason)
        self._said = step.reason
        for number in (*step.cancel, *step.release):
            if self._may_go(self._jobs[number]):
                await self._give_back(self._jobs[number], step.reason, group)
        if step.submit:
            await self._ask(lack.role, step, group)

    async def _learn(self, now: float, group: asyncio.TaskGroup) -> None:
        """What became of those that were asked for."""
        for job in tuple(self._jobs.values()):
            if job.state is ExtraJobState.running and job.has_no_workers:
                await self._give_back(job, USELESS, group)
                self._rule.failed(now)
            elif job.state is ExtraJobState.running and not job.planner_view().coming:
                self._rule.succeeded()
            elif job.failed and job not in self._failed:
                self._failed.add(job)
                self._rule.failed(now)
                await self._note_end(job, job.status.detail)

    def _room(self) -> Budget:
        nodes = self._grow.max_nodes - sum(job.status.nodes for job in self._live)
        limit = self._grow.max_node_hours
        hours = math.inf if limit is None else limit - self.node_hours
        return Budget(nodes, hours, self._left_s())

    def _left_s(self) -> float:
        if self._ends_at is None:
            return 60.0 * walltime_minutes(self._config.cluster.slurm.time)
        return self._ends_at - time.time()

    async def _ask(self, role: Role, step: ScaleOutStep, group: asyncio.TaskGroup) -> None:
        room, nodes = self._room(), self._grow.nodes_per_job * step.submit
        time_s = min(room.seconds, room.node_hours * 3600 / nodes)
        try:
            jobs = [await self._new(role) for _ in range(step.submit)]
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("no further job: %s", e)
            return
        if self._ending:
            return
        for job in jobs:
            self._jobs[job.status.number] = job
            group.create_task(job.run(time_s), name=f"grown-{job.status.number}")
        count = sum(len(job.status.ranks) for job in jobs)
        await self._keep(RoleMove(count=count, old=None, new=role), jobs, step.reason)

    async def _new(self, role: Role) -> ExtraJob:
        plan = self._plans[role].shifted(self._next_rank, self._next_node)
        self._next_rank += len(plan.workers)
        self._next_node += plan.nodes
        folder = await asyncio.to_thread(self._attempt.new_extra_job, plan)
        ranks, now = tuple(worker.rank for worker in plan.workers), time.time()
        known = ExtraJobStatus(
            number=folder.number, role=role, nodes=plan.nodes, ranks=ranks, requested_at=now
        )
        return ExtraJob(folder, known, self._config, self._router, self._members)

    async def _give_back(self, job: ExtraJob, why: str, group: asyncio.TaskGroup) -> None:
        if job in self._going:
            return
        self._going.add(job)
        ends = job.cancel if job.planner_view().pending else partial(self._release, job)
        group.create_task(ends(why), name=f"give-back-{job.status.number}")
        await self._note_end(job, why)

    async def _release(self, job: ExtraJob, why: str) -> None:
        """A worker that changes its role would be given requests after its drain."""
        for _ in range(STILL_TICKS):
            if set(job.status.ranks).isdisjoint(self._moving()):
                break
            await asyncio.sleep(TICK_S)
        await job.release(why)

    def _may_go(self, job: ExtraJob) -> bool:
        """Not while its workers change their role, nor where a role would have too few left."""
        ranks = set(job.status.ranks)
        if not ranks.isdisjoint(self._moving()):
            return False
        stay = Counter(
            m.role for m in self._router.workers if m.rank not in ranks and not m.draining
        )
        roles = {m.role for m in self._router.workers if m.rank in ranks}
        return all(stay[role] >= min_workers(self._config.planner, role) for role in roles)

    async def _mind_warnings(self, group: asyncio.TaskGroup) -> None:
        """Jobs that Slurm ends soon, by their walltime or since they are preempted."""
        while True:
            node = await self._members.preempted_nodes.get()
            for job in [job for job in self._live if node in job.nodes]:
                log.warning("further job %s: Slurm ends it soon", job.status.job_id)
                await self._give_back(job, "Slurm ends it soon", group)

    async def _note_end(self, job: ExtraJob, why: str) -> None:
        move = RoleMove(count=len(job.status.ranks), old=job.status.role, new=None)
        await self._keep(move, [job], why)

    async def _keep(self, move: RoleMove, jobs: Iterable[ExtraJob], why: str) -> None:
        record = ScaleOutRecord(
            at=time.time(),
            move=move,
            jobs=tuple(job.status.number for job in jobs),
            reason=why,
            node_hours=self.node_hours,
        )
        try:
            await asyncio.to_thread(jsonl.append, self._attempt.scale_out_file, record)
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("no record of growth: %s", e)


def _is_over(attempt: Attempt) -> bool:
    """Whether its head cannot look after its further jobs any more."""
    if attempt.outcome() is not None:
        return True
    job = launch.find_job(attempt)
    return job is None or job.state()[0] is JobState.ended
