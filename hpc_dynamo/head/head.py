"""The head of a job with agents: starts its parts, runs the workload, shuts down in order."""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection

from msgspec.structs import replace

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
from hpc_dynamo.launch.extra_jobs import current_jobs
from hpc_dynamo.launch.node import allocation_end
from hpc_dynamo.launch.walltime import Walltime
from hpc_dynamo.messages import ControlMessage, Outcome, PlannerStatus, Roster, Status
from hpc_dynamo.planner.interpolation import load_performance
from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.planner import RolePlanner
from hpc_dynamo.planner.signals import PlannerDecision
from hpc_dynamo.run import Attempt, ExtraJobFolder
from hpc_dynamo.wire import ControlServer

STOP_MARGIN_S = 10.0  # for an agent, in addition to engine.stop_timeout_s
WALLTIME_CHECK_S = 0.5

WORKLOADS: dict[Task, Callable[[HeadContext], Workload]] = {
    Task.batch: BatchWorkload,
    Task.serve: ServeWorkload,
    Task.profile: ProfileWorkload,
}

log = logging.getLogger(__name__)


class Head(JobLifecycle):
    """Head of an attempt whose workers are run by agents."""

    def __init__(
        self,
        attempt: Attempt,
        roster: Roster,
        server: ControlServer[ControlMessage],
        report_outcome: Callable[[Outcome], None],
        endpoint_socket: socket.socket | None = None,
    ) -> None:
        """`report_outcome` is called as soon as the outcome is known, before agents stop."""
        super().__init__(attempt)
        self._report_outcome, self._endpoint_socket = report_outcome, endpoint_socket
        self._roster, self._server = roster, server
        self._earlier_jobs = current_jobs(attempt, roster)
        self._walltime = Walltime(None, self._config.cluster.slurm.signal_before_end_s)
        self._draining = self._signal_pending = False
        self._handover: JobHandover | None = None
        self._planner_loop: PlannerLoop | None = None
        self._scale_out: ScaleOutController | None = None
        self._hetero_jobs: HeterogeneousJobs | None = None

    def on_preemption_signal(self) -> None:
        """Handle Slurm's signal before the end of the walltime, or before a preemption."""
        if self._workload is None:
            self._signal_pending = True
        elif self._walltime.signal_was_early(self._workload.request_p95_s):
            return
        elif self._handover:
            self._walltime = self._walltime.after_signal()
        else:
            self._drain(self._walltime.left_after_signal_s())

    def _drain(self, left_s: float) -> None:
        """Start no more requests; end the job after `left_s` at the latest."""
        if self._draining or self._workload is None:
            return
        self._draining = True
        log.info("the job ends soon: draining, for %.0f s at most", left_s)
        self._workload.drain()
        asyncio.get_running_loop().call_later(max(left_s, 1.0), self._end_overdue, self._workload)

    def _end_overdue(self, workload: Workload) -> None:
        self.finish_with(workload.overdue_outcome)

    async def _watch_walltime(self, workload: Workload) -> None:
        """Drain once a request that starts now would not finish in time. Runs until cancelled."""
        while True:
            await asyncio.sleep(WALLTIME_CHECK_S)
            walltime = self._walltime
            left_s = walltime.handover_left_s if self._handover else walltime.dispatch_left_s
            if left_s(workload.request_p95_s) <= 0:
                self._drain(walltime.time_left_s)

    async def _run_handover(self, workload: Workload) -> None:
        if self._handover:
            await self._handover.run(
                lambda: workload.phase == "serving",
                lambda: self._walltime.dispatch_left_s(workload.request_p95_s),
            )

    async def _run_planner(self, context: HeadContext, members: Membership) -> None:
        config, file = self._config, self._attempt.planner_file
        if config.planner.mode is not PlannerMode.off:
            router, loads = context.route.router, context.route.scraper.loads
            planner = RolePlanner(config.planner, await self._worker_performance())
            changer = RoleChanger(config, router, members, context.client)
            loop = PlannerLoop(config, router, planner, changer, loads, file, self._on_decision)
            self._planner_loop = loop
            await loop.run()

    def _on_decision(self, decision: PlannerDecision) -> None:
        if self._scale_out:
            self._scale_out.on_decision(decision)

    async def _run_scale_out(self, context: HeadContext, members: Membership) -> None:
        if self._config.planner.scale_out.max_nodes:
            router, ends_at = context.route.router, self._walltime.ends_at
            changing, earlier = self._changing_role, self._earlier_jobs
            self._scale_out = ScaleOutController(
                self._attempt, router, members, ends_at, changing, earlier
            )
            await self._scale_out.run()

    def _jobs_without_head(self) -> list[ExtraJobFolder]:
        """Return the jobs that were submitted with this one; their agents may connect at once."""
        jobs = self._attempt.extra_jobs() if self._attempt.plan().separate_jobs else []
        return [folder for folder in jobs if folder.state() is None]

    async def _run_hetero_jobs(self, context: HeadContext, members: Membership) -> None:
        if self._attempt.plan().separate_jobs:
            router, on_preemption = context.route.router, self.on_preemption_signal
            self._hetero_jobs = HeterogeneousJobs(
                self._attempt, router, members, on_preemption, self.fail, self._earlier_jobs
            )
            await self._hetero_jobs.run()

    @property
    def _extra_jobs(self) -> list[ScaleOutController | HeterogeneousJobs]:
        return [jobs for jobs in (self._scale_out, self._hetero_jobs) if jobs]

    def _changing_role(self) -> Collection[int]:
        return self._planner_loop.changing if self._planner_loop else ()

    async def _stop(self, members: Membership, reason: str) -> None:
        """Stop extra jobs and all agents, at the same time."""
        engines = [config.engine for config in self._config.by_model.values()]
        timeout_s = max(engine.stop_timeout_s for engine in engines) + STOP_MARGIN_S
        async with asyncio.TaskGroup() as group:
            group.create_task(members.stop_all(reason, timeout_s))
            for jobs in self._extra_jobs:
                group.create_task(jobs.end(reason))

    async def _worker_performance(self) -> WorkerPerformance | None:
        """Return the measured performance that `planner=sla` uses."""
        if self._config.planner.mode is not PlannerMode.sla:
            return None
        return await asyncio.to_thread(load_performance, self._config.planner.profile)

    def _status(self, members: WorkerDirectory, ends_at: float | None, detail: str = "") -> Status:
        status = super()._status(members, ends_at, detail)
        status = replace(status, planner=self._planner_status())
        for jobs in self._extra_jobs:
            status = jobs.extend_status(status)
        return status

    def _planner_status(self) -> PlannerStatus | None:
        return self._planner_loop.status() if self._planner_loop else None

    async def run(self) -> Outcome:
        """Run the attempt. Returns once all agents have exited, or did not do so in time."""
        ends_at = await asyncio.to_thread(allocation_end)
        self._walltime = Walltime(ends_at, self._config.cluster.slurm.signal_before_end_s)
        token = self._attempt.run.secrets().token
        async with HttpClient.bearer(token) as http, asyncio.TaskGroup() as group:
            routes = model_routes(self._config, http)
            routers = {model: route.router for model, route in routes.items()}
            members = Membership(self._attempt, self._roster, self._server, routers, self.fail)
            members.on_preemption = self.on_preemption_signal
            for folder in (*self._earlier_jobs, *self._jobs_without_head()):
                members.expect(folder.plan())
            if self._config.planner.job_handover and self._config.task is Task.serve:
                changed = next(iter(routers.values())).changed
                self._handover = JobHandover(self._attempt, changed.set)
            context = HeadContext(
                *(self._attempt, self._config, routes, members, http),
                planner_status=self._planner_status,
                handover=self._handover,
                endpoint_socket=self._endpoint_socket,
            )
            workload = self._workload = WORKLOADS[self._config.task](context)
            if self._signal_pending:
                self.on_preemption_signal()
            scrapers = [route.scraper for route in routes.values()]
            background = [
                group.create_task(members.listen(), name="control"),
                group.create_task(members.watch(), name="watch"),
                group.create_task(self._write_status(members, ends_at), name="status"),
                group.create_task(self._watch_walltime(workload), name="walltime"),
                *(group.create_task(scraper.run(), name="scrape") for scraper in scrapers),
                group.create_task(self._run_scale_out(context, members), name="scale-out"),
                group.create_task(self._run_hetero_jobs(context, members), name="hetero-jobs"),
                group.create_task(self._run_planner(context, members), name="planner"),
            ]
            # A run that was stopped must not submit a next job.
            handing_over = group.create_task(self._run_handover(workload), name="handover")
            self._outcome.add_done_callback(lambda _: handing_over.cancel())
            task = group.create_task(self._run_workload(workload), name="workload")
            outcome = await self._wait_for_outcome(task)
            self._report_outcome(outcome)
            await self._stop(members, outcome.message or "all done")
            for each in background:
                each.cancel()
        if self._handover:
            outcome = self._handover.final_outcome(outcome)
        return self._conclude(members, ends_at, outcome)
