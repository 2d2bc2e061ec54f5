"""The jobs of the other kinds of nodes: as much of the run as the head's own job, and over with it.

They were asked for together with the head's, and their agents wait for its roster. A head that
was started again in its place asks for them itself, since the former ones ended with its former
life. One that ends before the run does takes a whole role away: so the run ends as well.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from hpc_dynamo.config import Config, walltime_minutes
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.scaling.extra_job import ExtraJob
from hpc_dynamo.launch.extra_jobs import stop_leftover_jobs
from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, Status
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt, ExtraJobFolder

log = logging.getLogger(__name__)


class HeterogeneousJobs:
    """Of one attempt. `warned` is called when Slurm is about to end one, `lost` when it did."""

    def __init__(
        self,
        attempt: Attempt,
        router: Router,
        members: Membership,
        warned: Callable[[], object],
        lost: Callable[[EngineError], object],
    ) -> None:
        self._attempt, self._router, self._members = attempt, router, members
        self._config: Config = attempt.config()
        self._warned, self._lost = warned, lost
        self._jobs = list[ExtraJob]()
        self._ending = False

    def extend_status(self, status: Status) -> Status:
        live = (job.status for job in self._jobs if job.state is not ExtraJobState.ended)
        return replace(status, extra_jobs=(*status.extra_jobs, *live))

    async def run(self) -> None:
        """Until cancelled; `end` comes before that."""
        folders = await asyncio.to_thread(self._folders)
        self._jobs = [self._further(folder) for folder in folders]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mind_warnings(), name="companion-warnings")
            for job in self._jobs:
                group.create_task(self._mind(job), name=f"companion-{job.status.number}")

    async def end(self, why: str) -> None:
        """They end now."""
        self._ending = True
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(job.end_with_run(why))

    def _folders(self) -> list[ExtraJobFolder]:
        """Of jobs that wait for their first head, or new ones in place of a former head's."""
        there = self._attempt.extra_jobs()
        waiting = [folder for folder in there if folder.state() is None]
        stop_leftover_jobs(
            (f for f in there if f not in waiting), self._config.cluster.heartbeat_timeout_s
        )
        if waiting:
            return waiting
        return [self._attempt.new_extra_job(part) for part in self._attempt.plan().group_plans[1:]]

    def _further(self, folder: ExtraJobFolder) -> ExtraJob:
        plan, job = folder.plan(), folder.job()
        known = ExtraJobStatus(
            number=folder.number,
            role=plan.workers[0].role,
            nodes=plan.nodes,
            ranks=tuple(worker.rank for worker in plan.workers),
            requested_at=job.submitted_at if job else time.time(),
        )
        return ExtraJob(folder, known, self._config, self._router, self._members)

    async def _mind(self, job: ExtraJob) -> None:
        await job.run(60.0 * walltime_minutes(self._config.cluster.slurm.time))
        if not self._ending:
            known = job.status
            what = f"the job {known.job_id} of the {known.role} workers has ended: {known.detail}"
            self._lost(EngineError(what, log=self._attempt.logs))

    async def _mind_warnings(self) -> None:
        """A companion's walltime is over, or it is preempted: the run goes on in another job."""
        while True:
            node = await self._members.preempted_nodes.get()
            log.warning("Slurm ends the job of node %d soon", node)
            self._warned()
