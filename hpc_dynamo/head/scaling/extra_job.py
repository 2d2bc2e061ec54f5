"""One extra job of a run, from its submission to its end."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any

from msgspec.structs import replace

from hpc_dynamo import launch
from hpc_dynamo.config import Config
from hpc_dynamo.errors import HpcDynamoError, LaunchError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.membership.losses import GONE
from hpc_dynamo.launch import extra_jobs
from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, WorkerState
from hpc_dynamo.planner.scale_out import JobCapacity
from hpc_dynamo.router import RequestRouter
from hpc_dynamo.run import ExtraJobFolder, write_json

POLL_S = 5.0  # the scheduler serves many users
END_S = 20.0  # to leave the queue after the agents have exited
STOP_MARGIN_S = 10.0  # for an agent, in addition to engine.stop_timeout_s

log = logging.getLogger(__name__)


class ExtraJob:
    """An extra job. `status` is also written to its folder at every change, and read from there
    if an earlier head followed the job."""

    def __init__(
        self, folder: ExtraJobFolder, config: Config, router: RequestRouter, members: Membership
    ) -> None:
        self._folder, self._plan = folder, folder.plan()
        plan, record = self._plan, folder.job()
        self.status = folder.state() or ExtraJobStatus(
            number=folder.number,
            role=plan.workers[0].role,
            nodes=plan.nodes,
            ranks=tuple(worker.rank for worker in plan.workers),
            requested_at=record.submitted_at if record else time.time(),
        )
        self._config, self._router, self._members = config, router, members
        self.nodes = self._plan.used_nodes
        self._joined = False  # one of its workers has reported
        self._end_requested = False
        self._submitted, self._ended = asyncio.Event(), asyncio.Event()
        self._job: launch.LaunchedJob | None = None
        self._write_lock = asyncio.Lock()

    @property
    def state(self) -> ExtraJobState:
        return self.status.state

    async def run(self, time_s: float) -> None:
        """Submit the job with a walltime, unless it was submitted, and follow it to its end."""
        self._members.expect(self._plan)
        await self._update()
        try:
            record = await asyncio.to_thread(self._folder.job)
            job_id = record.job_id if record else await extra_jobs.submit(self._folder, time_s)
        except (LaunchError, OSError) as e:
            await self._set_ended(str(e))
            return
        finally:
            self._submitted.set()
        self._job = launch.find_job(self._folder)
        await self._update(job_id=job_id)
        while not self._ended.is_set():
            await self._poll()
            await _within(self._ended.wait(), POLL_S)

    async def _poll(self) -> None:
        assert self._job
        try:
            state, detail = await asyncio.to_thread(self._job.state)
        except HpcDynamoError as e:
            state, detail = launch.JobState.unknown, e.message
        if self._ended.is_set():
            return
        if faults := await asyncio.to_thread(self._faults):
            # Its other nodes may be fit, but the job was submitted as a whole.
            await self._cancel_job()
            await self._set_ended(f"not fit for this run: {' '.join(faults.split())}")
            return
        now = time.time()
        match state:
            case launch.JobState.pending if self.state is ExtraJobState.pending:
                await self._update(detail=detail)
            case launch.JobState.running:
                times = {"running_since": self.status.running_since or now, "running_until": now}
                running = {"state": ExtraJobState.running, "detail": detail}
                await self._update(**times, **({} if self._draining else running))
            case launch.JobState.ended:
                outcome = self._folder.outcome()
                error = outcome.message if outcome and outcome.exit_code else ""
                await self._set_ended(self.status.detail if self._draining else error or detail)

    def _faults(self) -> str:
        """Return the faults that agents found on their nodes before they started engines."""
        return "; ".join(fault for node in self._folder.nodes() for fault in node.faults)

    @property
    def _draining(self) -> bool:
        return self.state is ExtraJobState.draining

    def planner_view(self) -> JobCapacity:
        """Return the counts of its workers for the planner."""
        ready, coming, ranks = 0, 0, self.status.ranks
        reports = [self._members.workers.get(rank) for rank in ranks]
        self._joined = self._joined or any(reports)
        for report in reports:
            ready += report is not None and report.state is WorkerState.ready
            coming += not self._joined if report is None else report.state not in GONE
        pending = self.state is ExtraJobState.pending and not self._joined
        return JobCapacity(self.status.number, ready, coming - ready, pending)

    @property
    def failed(self) -> bool:
        """True if the job ended without a request to end."""
        return self.state is ExtraJobState.ended and not self._end_requested

    @property
    def has_no_workers(self) -> bool:
        """True if all its workers have come and are permanently lost."""
        return self.planner_view().workers == 0

    async def release(self, reason: str) -> None:
        """Drain its workers, stop its agents and wait for its end; cancel it if that fails."""
        self._end_requested = True
        self._members.forget(self._plan)
        await self._update(state=ExtraJobState.draining, detail=reason)
        drains = map(self._drain_worker, self.status.ranks)
        await _within(asyncio.gather(*drains), self._config.planner.drain_timeout_s)
        timeout_s = self._config.engine.stop_timeout_s + STOP_MARGIN_S
        await self._members.stop(self.nodes, reason, timeout_s)
        if not await _within(self._ended.wait(), END_S):
            await self.cancel(reason)

    async def _drain_worker(self, rank: int) -> None:
        if any(worker.rank == rank for worker in self._router.workers):
            await self._router.drain(rank)

    async def cancel(self, reason: str) -> None:
        """End the job now, whether it waits or runs."""
        self._end_requested = True
        self._members.forget(self._plan)
        await self._submitted.wait()
        if self._job and not self._ended.is_set():
            await self._update(state=ExtraJobState.draining, detail=reason)
            await self._cancel_job()

    async def _cancel_job(self) -> None:
        assert self._job
        try:
            await asyncio.to_thread(self._job.stop)
        except HpcDynamoError as e:
            log.warning("extra job %s: %s", self.status.job_id, e)

    async def end_with_run(self, reason: str) -> None:
        """Cancel the job at the end of the run and stop polling it."""
        await self.cancel(reason)
        if not self._ended.is_set():
            self._ended.set()
            await self._update(state=ExtraJobState.ended, running_until=time.time())

    async def _set_ended(self, reason: str) -> None:
        self._members.forget(self._plan)
        await self._update(state=ExtraJobState.ended, detail=reason)
        log.info("extra job %d (%s) ended: %s", self.status.number, self.status.job_id, reason)
        self._ended.set()

    async def _update(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        try:
            async with self._write_lock:  # keeps the order of writes
                await asyncio.to_thread(write_json, self._folder.state_file, self.status)
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("status of an extra job not written: %s", e)


async def _within(action: Awaitable[Any], timeout_s: float) -> bool:
    """Return True if the action finished in time; it is cancelled otherwise."""
    try:
        async with asyncio.timeout(timeout_s):
            await action
    except TimeoutError:
        return False
    return True
