"""Runs one attempt to its outcome: start, work, shutdown in that order."""

import asyncio
import logging
from collections.abc import Callable, Collection

from msgspec.structs import replace

from hpc_dynamo.agent import Agent
from hpc_dynamo.config import PlannerMode, Task
from hpc_dynamo.head.lifecycle import JobLifecycle
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.scaling.hetero_jobs import HeterogeneousJobs
from hpc_dynamo.head.scaling.job_handover import JobHandover
from hpc_dynamo.head.scaling.planner_loop import PlannerLoop
from hpc_dynamo.head.scaling.role_change import RoleChanger
from hpc_dynamo.head.scaling.scale_out import ScaleOutController
from hpc_dynamo.head.workloads.batch import BatchWorkload
from hpc_dynamo.head.workloads.profile import ProfileWorkload
from hpc_dynamo.head.workloads.serve import ServeWorkload
from hpc_dynamo.head.workloads.workload import HeadContext, WorkerDirectory, Workload, model_routes
from hpc_dynamo.http import HttpClient
from hpc_dynamo.launch.node import allocation_end
from hpc_dynamo.launch.walltime import Walltime
from hpc_dynamo.messages import ControlMessage, Outcome, PlannerStatus, Roster, Status
from hpc_dynamo.planner.interpolation import load_performance
from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.planner import Planner
from hpc_dynamo.run import Attempt
from hpc_dynamo.wire import ControlServer

FAREWELL_S = 10.0  # for an agent to answer, beyond what its engines may take to end
TICK_S = 0.5

WORK: dict[Task, Callable[[HeadContext], Workload]] = {
    Task.batch: BatchWorkload,
    Task.serve: ServeWorkload,
    Task.profile: ProfileWorkload,
}

log = logging.getLogger(__name__)


class Head(JobLifecycle):
    """One attempt whose workers are its agents'."""

    def __init__(
        self, attempt: Attempt, roster: Roster, server: ControlServer[ControlMessage]
    ) -> None:
        super().__init__(attempt)
        self._roster, self._server = roster, server
        self._walltime = Walltime(None, self._config.cluster.slurm.signal_before_end_s)
        self._draining = self._warned = False
        self._handover: JobHandover | None = None
        self._reshaper: PlannerLoop | None = None
        self._grower: ScaleOutController | None = None
        self._companions: HeterogeneousJobs | None = None

    def warn(self) -> None:
        """Slurm says that the job ends soon: by its walltime, or because it is preempted."""
        if self._work is None:
            self._warned = True  # acted on when there is something to end
        elif self._walltime.signal_was_early(self._work.likely_s):
            return
        elif self._handover:
            self._walltime = self._walltime.after_signal()
        else:
            self._drain(self._walltime.left_after_signal_s())

    def _drain(self, left_s: float) -> None:
        """Begin nothing, let what is under way end, but not for ever."""
        if self._draining or self._work is None:
            return
        self._draining = True
        log.info("the job ends soon: draining, for %.0f s at most", left_s)
        self._work.drain()
        asyncio.get_running_loop().call_later(max(left_s, 1.0), self._break_off, self._work)

    def _break_off(self, work: Workload) -> None:
        self.finish_with(work.overdue_outcome)

    async def _mind_the_end(self, work: Workload) -> None:
        """Drain when what begins now would hardly end in time. Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            walltime = self._walltime
            spare_s = walltime.handover_left_s if self._handover else walltime.dispatch_left_s
            if spare_s(work.likely_s) <= 0:
                self._drain(walltime.time_left_s)

    async def _hand_over(self, work: Workload) -> None:
        """To the next job, until cancelled; not at all where none is asked for."""
        if self._handover:
            await self._handover.run(
                lambda: work.phase == "serving",
                lambda: self._walltime.dispatch_left_s(work.likely_s),
            )

    async def _reshape(self, job: HeadContext, members: Membership) -> None:
        """By the planner, until cancelled; not at all where none is asked for."""
        config, file = self._config, self._attempt.planner_file
        if config.planner.mode is not PlannerMode.off:
            router, loads = job.route.router, job.route.scraper.loads
            planner = Planner(config.planner, await self._performance())
            flipper = RoleChanger(config, router, members)
            heed = self._grower.on_decision if self._grower else lambda decision: None
            self._reshaper = PlannerLoop(config, router, planner, flipper, loads, file, heed)
            await self._reshaper.run()

    async def _grow(self, job: HeadContext, members: Membership) -> None:
        """By further jobs, until cancelled; not at all where none may be asked for."""
        if self._config.planner.scale_out.max_nodes:
            router, ends_at = job.route.router, self._walltime.ends_at
            self._grower = ScaleOutController(self._attempt, router, members, ends_at, self._moving)
            await self._grower.run()

    async def _accompany(self, job: HeadContext, members: Membership) -> None:
        """By jobs of other kinds of nodes, until cancelled; not at all where there are none."""
        if self._attempt.plan().separate_jobs:
            router = job.route.router
            made = HeterogeneousJobs(self._attempt, router, members, self.warn, self.fail)
            self._companions = made
            await made.run()

    @property
    def _further(self) -> list[ScaleOutController | HeterogeneousJobs]:
        return [others for others in (self._grower, self._companions) if others]

    def _moving(self) -> Collection[int]:
        return self._reshaper.changing if self._reshaper else ()

    async def _stop(self, members: Membership, reason: str) -> None:
        """Further jobs and all agents, at the same time."""
        engines = [own.engine for own in self._config.by_model.values()]
        patience_s = max(engine.stop_timeout_s for engine in engines) + FAREWELL_S
        async with asyncio.TaskGroup() as group:
            group.create_task(members.stop_all(reason, patience_s))
            for others in self._further:
                group.create_task(others.end(reason))

    async def _performance(self) -> WorkerPerformance | None:
        """By the profile that the planner is to go by, if it is."""
        if self._config.planner.mode is not PlannerMode.sla:
            return None
        return await asyncio.to_thread(load_performance, self._config.planner.profile)

    def _status(self, members: WorkerDirectory, ends_at: float | None, detail: str = "") -> Status:
        status = super()._status(members, ends_at, detail)
        status = replace(status, planner=self._planning())
        for others in self._further:
            status = others.extend_status(status)
        return status

    def _planning(self) -> PlannerStatus | None:
        return self._reshaper.status() if self._reshaper else None

    async def run(self, agent: Agent) -> Outcome:
        """Returns after every agent has ended, or did not say so in time."""
        ends_at = await asyncio.to_thread(allocation_end)
        self._walltime = Walltime(ends_at, self._config.cluster.slurm.signal_before_end_s)
        token = self._attempt.run.secrets().token
        async with HttpClient.bearer(token) as http, asyncio.TaskGroup() as group:
            found = model_routes(self._config, http)
            routers = {model: lane.router for model, lane in found.items()}
            members = Membership(self._attempt, self._roster, self._server, routers, self.fail)
            if self._config.planner.job_handover and self._config.task is Task.serve:
                self._handover = JobHandover(
                    self._attempt, next(iter(routers.values())).changed.set
                )
            job = HeadContext(
                self._attempt, self._config, found, members, http, self._planning, self._handover
            )
            made = self._work = WORK[self._config.task](job)
            if self._warned:
                self.warn()
            tasks = [
                group.create_task(members.listen(), name="control"),
                group.create_task(members.watch(), name="watch"),
                group.create_task(self._show(members, ends_at), name="status"),
                group.create_task(self._mind_the_end(made), name="walltime"),
                *(group.create_task(lane.scraper.run(), name="scrape") for lane in found.values()),
                group.create_task(self._grow(job, members), name="growth"),
                group.create_task(self._accompany(job, members), name="companions"),
                group.create_task(self._reshape(job, members), name="planner"),
                group.create_task(agent.run(), name="agent"),
            ]
            # Who was told to end must ask for no further job.
            handing = group.create_task(self._hand_over(made), name="handover")
            self._outcome.add_done_callback(lambda _: handing.cancel())
            work = group.create_task(self._finish(made), name="work")
            outcome = await self._over(work)
            await self._stop(members, outcome.message or "all done")
            for background in tasks:
                background.cancel()
        if self._handover:
            outcome = self._handover.final_outcome(outcome)
        return self._conclude(members, ends_at, outcome)
