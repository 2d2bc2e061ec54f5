"""When a run asks for further jobs and when it gives them back: decided once an interval.

A job is asked for when more workers than are ready, moving or coming were wanted for `patience`
intervals, and then as few as any of these wanted. Jobs that the load would do without, the newest
first, are taken back: after `patience` intervals where they still wait in the scheduler's queue,
after `idle_s` where they run. When the node-hours are used up all go.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import msgspec

from hpc_dynamo.backoff import Backoff
from hpc_dynamo.config import Planner, Role
from hpc_dynamo.planner.signals import CapacityGap, RoleMove

MIN_JOB_S = 180.0  # a job of less time is not worth its start
RETRY_INTERVALS = 10  # after a job that failed; twice as many after each further one
MAX_RETRY_INTERVALS = 160


class JobCapacity(NamedTuple):
    """A further job that is not given back yet."""

    number: int
    ready: int  # workers
    coming: int  # workers that are not ready yet, and may be
    pending: bool = False  # in the scheduler's queue

    @property
    def workers(self) -> int:
        return self.ready + self.coming


class Budget(NamedTuple):
    """What the limits leave: nodes not asked for, node-hours not used, walltime of the head."""

    nodes: int
    node_hours: float
    seconds: float


class ScaleOutStep(NamedTuple):
    """What is to be done now. `why` something was done, or not done."""

    submit: int = 0  # jobs
    cancel: tuple[int, ...] = ()  # pending ones
    release: tuple[int, ...] = ()  # running ones
    reason: str = ""


class ScaleOutRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of scale_out.jsonl: workers that were asked for or given back (see Move), by job."""

    at: float  # since the epoch
    move: RoleMove
    jobs: tuple[int, ...]
    reason: str
    node_hours: float = 0.0  # used until then


class ScaleOutPolicy:
    """Counts and clocks of the rule. `each` is how many workers a job of a role brings."""

    def __init__(self, config: Planner, each: Mapping[Role, int]) -> None:
        self._config, self._workers_per_job = config, each
        self._missing_history = list[int]()  # workers, in the last intervals
        self._unneeded = dict[
            int, tuple[float, int]
        ]()  # by job: since when, for how many intervals
        interval_s = config.interval_s
        self._retries = Backoff(RETRY_INTERVALS * interval_s, MAX_RETRY_INTERVALS * interval_s)

    def decide(
        self, at: float, lack: CapacityGap, jobs: Sequence[JobCapacity], room: Budget
    ) -> ScaleOutStep:
        """`at` is any clock's time in seconds; no two calls are at the same."""
        if room.node_hours <= 0:
            self._missing_history.clear()
            return _all(jobs, "planner.scale_out.max_node_hours are used up")
        coming = sum(job.coming for job in jobs)
        self._update_unneeded(at, lack.spare - lack.missing + coming, jobs)
        cancel = tuple(j.number for j in jobs if j.pending and self._unused(j, at))
        release = tuple(j.number for j in jobs if not j.pending and self._unused(j, at))
        ask, why = self._jobs_to_submit(at, lack, coming, room)
        return ScaleOutStep(
            ask, cancel, release, why or ("not needed" if cancel or release else "")
        )

    def failed(self, at: float) -> None:
        """A job was refused, or never brought what it was asked for."""
        self._retries.failed(at)

    def succeeded(self) -> None:
        self._retries.succeeded()

    def _jobs_to_submit(
        self, at: float, lack: CapacityGap, coming: int, room: Budget
    ) -> tuple[int, str]:
        lacking = lack.missing - coming
        if lacking <= 0:
            self._missing_history.clear()
            return 0, ""
        self._missing_history.append(lacking)
        count, required = len(self._missing_history), self._config.stabilization_intervals
        if count < required:
            return 0, f"more wanted {count} of {required} times"
        wanted = ceil(
            min(self._missing_history[-self._config.stabilization_intervals :])
            / self._workers_per_job[lack.role]
        )
        most, limit = self._max_jobs(at, room)
        if most:
            self._missing_history.clear()
        why = f"{lacking} {lack.role} workers more"
        return min(wanted, most), why if most >= wanted else f"{why}, but {limit}"

    def _max_jobs(self, at: float, room: Budget) -> tuple[int, str]:
        """Jobs that the limits allow now, and the limit."""
        if not self._retries.allows(at):
            return 0, "a further job failed a while ago"
        if room.seconds < MIN_JOB_S:
            return 0, "too little walltime is left"
        each = self._config.scale_out.nodes_per_job
        by_nodes = max(room.nodes, 0) // each
        by_hours = int(min(room.node_hours * 3600 / (each * MIN_JOB_S), by_nodes))
        if by_hours < by_nodes:
            return by_hours, "planner.scale_out.max_node_hours leave no more"
        return by_nodes, "planner.scale_out.max_nodes allow no more"

    def _update_unneeded(self, at: float, surplus: int, jobs: Sequence[JobCapacity]) -> None:
        """Who could go now: those that nobody waits for first, the newest first."""
        before, self._unneeded = self._unneeded, {}
        for job in sorted(jobs, key=lambda j: (j.pending, j.number), reverse=True):
            if surplus >= job.workers:
                surplus -= job.workers
                since, count = before.get(job.number, (at, 0))
                self._unneeded[job.number] = since, count + 1

    def _unused(self, job: JobCapacity, at: float) -> bool:
        if job.number not in self._unneeded:
            return False
        since, count = self._unneeded[job.number]
        if job.pending:
            return count >= self._config.stabilization_intervals
        return at - since >= self._config.scale_out.scale_in_delay_s


def _all(jobs: Sequence[JobCapacity], why: str) -> ScaleOutStep:
    pending = tuple(job.number for job in jobs if job.pending)
    running = tuple(job.number for job in jobs if not job.pending)
    return ScaleOutStep(cancel=pending, release=running, reason=why if jobs else "")
