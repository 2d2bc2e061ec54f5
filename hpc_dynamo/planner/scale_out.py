"""Decides once per interval when to submit extra jobs and when to release them.

Jobs are submitted if workers were missing for `stabilization_intervals` intervals, as many as the
smallest of these gaps needs. Workers that are starting count as present. Jobs that the load does
not need are released, the newest first: pending jobs after `stabilization_intervals`, running jobs
after `scale_in_delay_s`. All jobs are released when the node-hours are used up.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import msgspec

from hpc_dynamo.backoff import Backoff
from hpc_dynamo.config import Planner, Role
from hpc_dynamo.planner.signals import CapacityGap, RoleMove

MIN_JOB_S = 180.0  # a shorter job is not worth its start
RETRY_INTERVALS = 10  # delay after a failed job; it doubles with each failure
MAX_RETRY_INTERVALS = 160


class JobCapacity(NamedTuple):
    """An extra job that has not been released."""

    number: int
    ready: int  # ready workers
    coming: int  # starting workers
    pending: bool = False  # in Slurm's queue

    @property
    def workers(self) -> int:
        return self.ready + self.coming


class Budget(NamedTuple):
    """Remaining limits: nodes, node-hours, and walltime of the head in seconds."""

    nodes: int
    node_hours: float
    seconds: float


class ScaleOutStep(NamedTuple):
    """Actions of one interval, and the reason for acting or for waiting."""

    submit: int = 0  # number of jobs
    cancel: tuple[int, ...] = ()  # numbers of pending jobs
    release: tuple[int, ...] = ()  # numbers of running jobs
    reason: str = ""


class ScaleOutRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of scale_out.jsonl: workers that were requested or released, with their jobs."""

    at: float  # seconds since the epoch
    move: RoleMove
    jobs: tuple[int, ...]
    reason: str
    node_hours: float = 0.0  # used so far


class ScaleOutPolicy:
    """State of the rule. `workers_per_job` is the number of workers of a job, by their role."""

    def __init__(self, config: Planner, workers_per_job: Mapping[Role, int]) -> None:
        self._config, self._workers_per_job = config, workers_per_job
        self._missing_history = list[int]()  # missing workers in the last intervals
        # Job number -> (since when, for how many intervals) the job has not been needed.
        self._unneeded = dict[int, tuple[float, int]]()
        interval_s = config.interval_s
        self._retries = Backoff(RETRY_INTERVALS * interval_s, MAX_RETRY_INTERVALS * interval_s)

    def decide(
        self, at: float, gap: CapacityGap, jobs: Sequence[JobCapacity], budget: Budget
    ) -> ScaleOutStep:
        """Return the actions of an interval. `at` is a time in seconds that increases per call."""
        if budget.node_hours <= 0:
            self._missing_history.clear()
            return _release_all(jobs, "planner.scale_out.max_node_hours are used up")
        coming = sum(job.coming for job in jobs)
        self._update_unneeded(at, gap.spare - gap.missing + coming, jobs)
        cancel = tuple(j.number for j in jobs if j.pending and self._can_end(j, at))
        release = tuple(j.number for j in jobs if not j.pending and self._can_end(j, at))
        submit, reason = self._jobs_to_submit(at, gap, coming, budget)
        reason = reason or ("not needed" if cancel or release else "")
        return ScaleOutStep(submit, cancel, release, reason)

    def failed(self, at: float) -> None:
        """Delay the next submission: a job was rejected, or its workers never became ready."""
        self._retries.failed(at)

    def succeeded(self) -> None:
        self._retries.succeeded()

    def _jobs_to_submit(
        self, at: float, gap: CapacityGap, coming: int, budget: Budget
    ) -> tuple[int, str]:
        missing = gap.missing - coming
        if missing <= 0:
            self._missing_history.clear()
            return 0, ""
        self._missing_history.append(missing)
        count, required = len(self._missing_history), self._config.stabilization_intervals
        if count < required:
            return 0, f"workers missing in {count} of {required} intervals"
        workers = min(self._missing_history[-required:])
        jobs = ceil(workers / self._workers_per_job[gap.role])
        max_jobs, limit = self._max_jobs(at, budget)
        if max_jobs:
            self._missing_history.clear()
        reason = f"{missing} {gap.role} workers more"
        return min(jobs, max_jobs), reason if max_jobs >= jobs else f"{reason}, but {limit}"

    def _max_jobs(self, at: float, budget: Budget) -> tuple[int, str]:
        """Return the number of jobs that the limits allow now, and the limit."""
        if not self._retries.allows(at):
            return 0, "an extra job failed a while ago"
        if budget.seconds < MIN_JOB_S:
            return 0, "too little walltime is left"
        nodes = self._config.scale_out.nodes_per_job
        by_nodes = max(budget.nodes, 0) // nodes
        by_hours = int(min(budget.node_hours * 3600 / (nodes * MIN_JOB_S), by_nodes))
        if by_hours < by_nodes:
            return by_hours, "planner.scale_out.max_node_hours leave no more"
        return by_nodes, "planner.scale_out.max_nodes allow no more"

    def _update_unneeded(self, at: float, surplus: int, jobs: Sequence[JobCapacity]) -> None:
        """Record the jobs that the surplus covers, pending and newest jobs first."""
        before, self._unneeded = self._unneeded, {}
        for job in sorted(jobs, key=lambda j: (j.pending, j.number), reverse=True):
            if surplus >= job.workers:
                surplus -= job.workers
                since, count = before.get(job.number, (at, 0))
                self._unneeded[job.number] = since, count + 1

    def _can_end(self, job: JobCapacity, at: float) -> bool:
        if job.number not in self._unneeded:
            return False
        since, count = self._unneeded[job.number]
        if job.pending:
            return count >= self._config.stabilization_intervals
        return at - since >= self._config.scale_out.scale_in_delay_s


def _release_all(jobs: Sequence[JobCapacity], reason: str) -> ScaleOutStep:
    pending = tuple(job.number for job in jobs if job.pending)
    running = tuple(job.number for job in jobs if not job.pending)
    return ScaleOutStep(cancel=pending, release=running, reason=reason if jobs else "")
