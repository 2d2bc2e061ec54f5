"""Extra jobs of other hardware, which are as essential to a run as the head's own job.

They were submitted together with the head's job, and their agents wait for its roster. A restarted
head continues with them. If the head's job is requeued, its new head submits them again, since the
earlier ones have ended. If one of them ends before the run does, a whole role is lost, so the run
ends.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from msgspec.structs import replace

from hpc_dynamo.config import Config, walltime_minutes
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.scaling.extra_job import ExtraJob
from hpc_dynamo.launch.extra_jobs import stop_leftover_jobs
from hpc_dynamo.messages import ExtraJobState, Status
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import Attempt, ExtraJobFolder

log = logging.getLogger(__name__)


class HeterogeneousJobs:
    """Extra jobs of an attempt's other hardware.

    An earlier head has left the jobs in `current`. `on_preemption` is called when Slurm ends one of
    them soon, `on_lost` when one has ended.
    """

    def __init__(
        self,
        attempt: Attempt,
        router: RequestRouter,
        members: Membership,
        on_preemption: Callable[[], object],
        on_lost: Callable[[EngineError], object],
        current: Collection[ExtraJobFolder] = (),
    ) -> None:
        self._current = {folder.number: folder for folder in current}
        self._attempt, self._router, self._members = attempt, router, members
        self._config: Config = attempt.config()
        self._on_preemption, self._on_lost = on_preemption, on_lost
        self._jobs = list[ExtraJob]()
        self._ending = False

    def extend_status(self, status: Status) -> Status:
        """Add the jobs that have not ended."""
        live = (job.status for job in self._jobs if job.state is not ExtraJobState.ended)
        return replace(status, extra_jobs=(*status.extra_jobs, *live))

    async def run(self) -> None:
        """Follow the jobs until cancelled. Call `end` before."""
        folders = await asyncio.to_thread(self._folders)
        config, router, members = self._config, self._router, self._members
        self._jobs = [ExtraJob(folder, config, router, members) for folder in folders]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_preemptions(), name="hetero-job-preemptions")
            for job in self._jobs:
                group.create_task(self._follow(job), name=f"hetero-job-{job.status.number}")

    async def end(self, reason: str) -> None:
        """End all jobs."""
        self._ending = True
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(job.end_with_run(reason))

    def _folders(self) -> list[ExtraJobFolder]:
        """Return the jobs that wait for their first or next head, or new ones after a requeue."""
        folders, current = self._attempt.extra_jobs(), self._current
        waiting = [f for f in folders if f.number in current or f.state() is None]
        earlier = [folder for folder in folders if folder not in waiting]
        stop_leftover_jobs(earlier, self._config.cluster.heartbeat_timeout_s)
        if waiting:
            return waiting
        return [self._attempt.new_extra_job(plan) for plan in self._attempt.plan().group_plans[1:]]

    async def _follow(self, job: ExtraJob) -> None:
        await job.run(60.0 * walltime_minutes(self._config.cluster.slurm.time))
        if not self._ending:
            status = job.status
            what = f"job {status.job_id} of the {status.role} workers has ended: {status.detail}"
            self._on_lost(EngineError(what, log=self._attempt.logs))

    async def _watch_preemptions(self) -> None:
        """Report the end of a job's walltime, or its preemption: another job continues the run."""
        while True:
            node = await self._members.preempted_nodes.get()
            log.warning("Slurm ends the job of node %d soon", node)
            self._on_preemption()
