"""Scale-out: extra jobs that are submitted and released as the planner decides."""

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
from hpc_dynamo.messages import ExtraJobState, Status
from hpc_dynamo.planner.scale_out import Budget, ScaleOutPolicy, ScaleOutRecord, ScaleOutStep
from hpc_dynamo.planner.signals import PlannerDecision, RoleMove
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Attempt, ExtraJobFolder
from hpc_dynamo.topology import plan_extra_job

TICK_S = 0.2
MAX_WAIT_TICKS = 150  # wait of a preempted job for role changes of its workers
NO_WORKERS = "none of its workers is left"

log = logging.getLogger(__name__)


class ScaleOutController:
    """Extra jobs of an attempt. `changing_role` returns the ranks that change their role now.

    An earlier head has left the jobs in `current`, which continue.
    """

    def __init__(
        self,
        attempt: Attempt,
        router: RequestRouter,
        members: Membership,
        ends_at: float | None,
        changing_role: Callable[[], Collection[int]],
        current: Collection[ExtraJobFolder] = (),
    ) -> None:
        self._attempt, self._config = attempt, attempt.config()
        self._router, self._members, self._ends_at = router, members, ends_at
        self._changing_role, self._limits = changing_role, self._config.planner.scale_out
        layout, nodes = attempt.plan(), self._limits.nodes_per_job
        roles = [role for role, _ in self._config.topology.pools]
        self._plans = {
            role: plan_extra_job(self._config.topology, layout, role, nodes) for role in roles
        }
        workers_per_job = {role: len(plan.workers) for role, plan in self._plans.items()}
        self._policy = ScaleOutPolicy(self._config.planner, workers_per_job)
        self._next_rank = 1 + max(worker.rank for worker in layout.workers)
        self._next_node = layout.nodes
        self._jobs = {folder.number: self._extra_job(folder) for folder in current}
        self._earlier_node_hours = 0.0  # used by jobs of earlier heads
        self._decisions = asyncio.Queue[PlannerDecision]()
        self._failed = set[ExtraJob]()
        self._releasing = set[ExtraJob]()
        self._last_reason, self._ending = "", False

    def on_decision(self, decision: PlannerDecision) -> None:
        """Act on a decision of the planner, soon after this returns."""
        self._decisions.put_nowait(decision)

    def extend_status(self, status: Status) -> Status:
        """Add the extra jobs that have not ended, and the newest one if it failed."""
        newest = list(self._jobs.values())[-1:]
        shown = [*self._live, *(job for job in newest if job.failed)]
        extra_jobs = tuple(job.status for job in shown)
        return replace(status, extra_jobs=extra_jobs, node_hours=self.node_hours)

    @property
    def node_hours(self) -> float:
        """Node-hours of all extra jobs of the run so far."""
        return self._earlier_node_hours + sum(j.status.node_hours for j in self._jobs.values())

    @property
    def _live(self) -> list[ExtraJob]:
        return [job for job in self._jobs.values() if job.state is not ExtraJobState.ended]

    async def run(self) -> None:
        """Act on decisions until cancelled. Call `end` before."""
        try:
            await asyncio.to_thread(self._read_earlier_jobs)
        except (HpcDynamoError, OSError) as e:
            log.warning("extra jobs of earlier heads are not all known: %s", e)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_preemptions(group), name="extra-job-preemptions")
            for job in self._jobs.values():
                self._follow(job, self._walltime_left_s(), group)
            while True:
                decision = await self._decisions.get()
                if not self._ending:
                    await self._act(decision, group)

    async def end(self, reason: str) -> None:
        """Submit no more jobs and end those that there are."""
        self._ending = True
        async with asyncio.TaskGroup() as group:
            for job in self._live:
                group.create_task(job.end_with_run(reason))

    def _read_earlier_jobs(self) -> None:
        """Stop jobs that earlier heads left, and count the node-hours of all."""
        for attempt in self._attempt.run.attempts():
            own, jobs = attempt.number == self._attempt.number, attempt.extra_jobs()
            if jobs and (own or _head_is_over(attempt)):
                leftover = (job for job in jobs if not (own and job.number in self._jobs))
                stop_leftover_jobs(leftover, self._config.cluster.heartbeat_timeout_s)
            for job in jobs:
                self._count_earlier_job(job, own=own)

    def _count_earlier_job(self, job: ExtraJobFolder, *, own: bool) -> None:
        counted = own and job.number in self._jobs
        if (status := job.state()) and not counted:
            self._earlier_node_hours += status.node_hours
        if own:  # its ranks and nodes are not used again
            plan = job.plan()
            self._next_rank = max(self._next_rank, *(w.rank + 1 for w in plan.workers))
            self._next_node = max(self._next_node, plan.first_node + plan.nodes)

    async def _act(self, decision: PlannerDecision, group: asyncio.TaskGroup) -> None:
        """Submit, cancel and release jobs for the decision of one interval."""
        gap, now = decision.gap, time.time()
        if gap is None:
            return
        await self._record_results(now, group)
        jobs = [job.planner_view() for job in self._live if job not in self._releasing]
        step = self._policy.decide(now, gap, jobs, self._budget())
        if step.reason and step.reason != self._last_reason:
            log.info("scale-out: %s", step.reason)
        self._last_reason = step.reason
        for number in (*step.cancel, *step.release):
            if self._may_release(self._jobs[number]):
                await self._release(self._jobs[number], step.reason, group)
        if step.submit:
            await self._submit(gap.role, step, group)

    async def _record_results(self, now: float, group: asyncio.TaskGroup) -> None:
        """Report to the policy which jobs have started or failed."""
        for job in tuple(self._jobs.values()):
            if job.state is ExtraJobState.running and job.has_no_workers:
                await self._release(job, NO_WORKERS, group)
                self._policy.failed(now)
            elif job.state is ExtraJobState.running and not job.planner_view().coming:
                self._policy.succeeded()
            elif job.failed and job not in self._failed:
                self._failed.add(job)
                self._policy.failed(now)
                await self._record_end(job, job.status.detail)

    def _budget(self) -> Budget:
        nodes = self._limits.max_nodes - sum(job.status.nodes for job in self._live)
        limit = self._limits.max_node_hours
        hours = math.inf if limit is None else limit - self.node_hours
        return Budget(nodes, hours, self._walltime_left_s())

    def _walltime_left_s(self) -> float:
        if self._ends_at is None:
            return 60.0 * walltime_minutes(self._config.cluster.slurm.time)
        return self._ends_at - time.time()

    async def _submit(self, role: Role, step: ScaleOutStep, group: asyncio.TaskGroup) -> None:
        budget, nodes = self._budget(), self._limits.nodes_per_job * step.submit
        time_s = min(budget.seconds, budget.node_hours * 3600 / nodes)
        try:
            jobs = [await self._new_job(role) for _ in range(step.submit)]
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("no extra job submitted: %s", e)
            return
        if self._ending:
            return
        for job in jobs:
            self._jobs[job.status.number] = job
            self._follow(job, time_s, group)
        count = sum(len(job.status.ranks) for job in jobs)
        await self._record(RoleMove(count=count, old=None, new=role), jobs, step.reason)

    async def _new_job(self, role: Role) -> ExtraJob:
        plan = self._plans[role].shifted(self._next_rank, self._next_node)
        self._next_rank += len(plan.workers)
        self._next_node += plan.nodes
        folder = await asyncio.to_thread(self._attempt.new_extra_job, plan)
        return self._extra_job(folder)

    def _extra_job(self, folder: ExtraJobFolder) -> ExtraJob:
        return ExtraJob(folder, self._config, self._router, self._members)

    def _follow(self, job: ExtraJob, time_s: float, group: asyncio.TaskGroup) -> None:
        group.create_task(job.run(time_s), name=f"extra-job-{job.status.number}")

    async def _release(self, job: ExtraJob, reason: str, group: asyncio.TaskGroup) -> None:
        if job in self._releasing:
            return
        self._releasing.add(job)
        pending = job.planner_view().pending
        end = job.cancel if pending else partial(self._release_when_settled, job)
        group.create_task(end(reason), name=f"release-{job.status.number}")
        await self._record_end(job, reason)

    async def _release_when_settled(self, job: ExtraJob, reason: str) -> None:
        """Release a job once none of its workers changes its role.

        A worker that finishes a role change would receive requests after its drain.
        """
        for _ in range(MAX_WAIT_TICKS):
            if set(job.status.ranks).isdisjoint(self._changing_role()):
                break
            await asyncio.sleep(TICK_S)
        await job.release(reason)

    def _may_release(self, job: ExtraJob) -> bool:
        """Return False if a worker of the job changes its role or its role would lack workers."""
        ranks = set(job.status.ranks)
        if not ranks.isdisjoint(self._changing_role()):
            return False
        workers = self._router.workers
        remaining = Counter(w.role for w in workers if w.rank not in ranks and not w.draining)
        roles = {w.role for w in workers if w.rank in ranks}
        return all(remaining[role] >= min_workers(self._config.planner, role) for role in roles)

    async def _watch_preemptions(self, group: asyncio.TaskGroup) -> None:
        """Release jobs that Slurm ends soon: their walltime ends, or they are preempted."""
        while True:
            node = await self._members.preempted_nodes.get()
            for job in [job for job in self._live if node in job.nodes]:
                log.warning("extra job %s: Slurm ends it soon", job.status.job_id)
                await self._release(job, "Slurm ends it soon", group)

    async def _record_end(self, job: ExtraJob, reason: str) -> None:
        move = RoleMove(count=len(job.status.ranks), old=job.status.role, new=None)
        await self._record(move, [job], reason)

    async def _record(self, move: RoleMove, jobs: Iterable[ExtraJob], reason: str) -> None:
        record = ScaleOutRecord(
            at=time.time(),
            move=move,
            jobs=tuple(job.status.number for job in jobs),
            reason=reason,
            node_hours=self.node_hours,
        )
        try:
            await asyncio.to_thread(jsonl.append, self._attempt.scale_out_file, record)
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("scale-out record not written: %s", e)


def _head_is_over(attempt: Attempt) -> bool:
    """Return True if the head of an attempt can no longer control its extra jobs."""
    if attempt.outcome() is not None:
        return True
    job = launch.find_job(attempt)
    return job is None or job.state()[0] is JobState.ended
