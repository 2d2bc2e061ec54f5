"""One further job of the run, from being asked for to its end."""

import asyncio
import logging
import time
from typing import Any

from msgspec.structs import replace

from hpc_dynamo import launch
from hpc_dynamo.config import Config
from hpc_dynamo.errors import HpcDynamoError, LaunchError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.launch import extra_jobs
from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, WorkerState
from hpc_dynamo.planner.scale_out import JobCapacity
from hpc_dynamo.router import Router
from hpc_dynamo.run import ExtraJobFolder, write_json

LOOK_S = 5.0  # at the scheduler, which many ask
END_S = 20.0  # for a job whose agents have ended to leave the scheduler's queue
FAREWELL_S = 10.0  # for an agent to answer, beyond what its engines may take to end
DEAD = (WorkerState.lost, WorkerState.stopped)

log = logging.getLogger(__name__)


class ExtraJob:
    """`known` is what there is to tell of it; also in its folder."""

    def __init__(
        self,
        folder: ExtraJobFolder,
        known: ExtraJobStatus,
        config: Config,
        router: Router,
        members: Membership,
    ) -> None:
        self._folder, self._plan, self.status = folder, folder.plan(), known
        self._config, self._router, self._members = config, router, members
        self.nodes = self._plan.used_nodes
        self._joined = False  # its agents have reported
        self._sent_away = False  # it was told to end
        self._asked, self._over = asyncio.Event(), asyncio.Event()
        self._job: launch.LaunchedJob | None = None
        self._writing = asyncio.Lock()

    @property
    def state(self) -> ExtraJobState:
        return self.status.state

    async def run(self, time_s: float) -> None:
        """Ask for the job, unless somebody did, then see how it is until it has ended."""
        self._members.expect(self._plan)
        await self._tell()
        try:
            asked = await asyncio.to_thread(self._folder.job)
            job_id = asked.job_id if asked else await extra_jobs.submit(self._folder, time_s)
        except (LaunchError, OSError) as e:
            await self._end(str(e))
            return
        finally:
            self._asked.set()
        self._job = launch.find_job(self._folder)
        await self._tell(job_id=job_id)
        while not self._over.is_set():
            await self._look()
            await _within(self._over.wait(), LOOK_S)

    async def _look(self) -> None:
        assert self._job
        try:
            state, detail = await asyncio.to_thread(self._job.state)
        except HpcDynamoError as e:
            state, detail = launch.JobState.unknown, e.message
        if self._over.is_set():
            return
        if unfit := await asyncio.to_thread(self._unfit):
            await self._refuse(unfit)
            return
        now = time.time()
        match state:
            case launch.JobState.pending if self.state is ExtraJobState.pending:
                await self._tell(detail=detail)
            case launch.JobState.running:
                seen = {"running_since": self.status.running_since or now, "running_until": now}
                new = {} if self._leaving else {"state": ExtraJobState.running, "detail": detail}
                await self._tell(**seen, **new)
            case launch.JobState.ended:
                outcome = self._folder.outcome()
                said = outcome.message if outcome and outcome.exit_code else ""
                await self._end(self.status.detail if self._leaving else said or detail)

    def _unfit(self) -> str:
        """What its agents found on their nodes before they would start anything."""
        return "; ".join(fault for node in self._folder.nodes() for fault in node.faults)

    async def _refuse(self, why: str) -> None:
        """Its other nodes may be fit, but it was asked for whole."""
        await self._cancel()
        await self._end(f"not fit for this run: {' '.join(why.split())}")

    @property
    def _leaving(self) -> bool:
        return self.state is ExtraJobState.draining

    def planner_view(self) -> JobCapacity:
        """As the rule sees it."""
        ready, coming, ranks = 0, 0, self.status.ranks
        reports = [self._members.workers.get(rank) for rank in ranks]
        self._joined = self._joined or any(reports)
        for report in reports:
            ready += report is not None and report.state is WorkerState.ready
            coming += not self._joined if report is None else report.state not in DEAD
        pending = self.state is ExtraJobState.pending and not self._joined
        return JobCapacity(self.status.number, ready, coming - ready, pending)

    @property
    def failed(self) -> bool:
        """It ended of itself."""
        return self.state is ExtraJobState.ended and not self._sent_away

    @property
    def has_no_workers(self) -> bool:
        """It came, and none of its workers is left."""
        return self.planner_view().workers == 0

    async def release(self, why: str) -> None:
        """Give its workers nothing new, end its agents when they have nothing left to do."""
        self._sent_away = True
        self._members.forget(self._plan)  # agents that are not here yet need not come
        await self._tell(state=ExtraJobState.draining, detail=why)
        drains = map(self._drain, self.status.ranks)
        await _within(asyncio.gather(*drains), self._config.planner.drain_timeout_s)
        patience_s = self._config.engine.stop_timeout_s + FAREWELL_S
        await self._members.stop(self.nodes, why, patience_s)
        if not await _within(self._over.wait(), END_S):
            await self.cancel(why)

    async def _drain(self, rank: int) -> None:
        if any(member.rank == rank for member in self._router.workers):
            await self._router.drain(rank)

    async def cancel(self, why: str) -> None:
        """End it now, wherever it is."""
        self._sent_away = True
        self._members.forget(self._plan)
        await self._asked.wait()
        if self._job and not self._over.is_set():
            await self._tell(state=ExtraJobState.draining, detail=why)
            await self._cancel()

    async def _cancel(self) -> None:
        assert self._job
        try:
            await asyncio.to_thread(self._job.stop)
        except HpcDynamoError as e:
            log.warning("further job %s: %s", self.status.job_id, e)

    async def end_with_run(self, why: str) -> None:
        """`stop`, and look at it no more: the run ends."""
        await self.cancel(why)
        if not self._over.is_set():
            self._over.set()
            await self._tell(state=ExtraJobState.ended, running_until=time.time())

    async def _end(self, why: str) -> None:
        self._members.forget(self._plan)
        await self._tell(state=ExtraJobState.ended, detail=why)
        log.info("further job %d (%s) has ended: %s", self.status.number, self.status.job_id, why)
        self._over.set()

    async def _tell(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        try:
            async with self._writing:  # what is newest is written last
                await asyncio.to_thread(write_json, self._folder.state_file, self.status)
        except OSError as e:  # a full disk must not end an endpoint
            log.warning("no record of a further job: %s", e)


async def _within(what: Any, seconds: float) -> bool:
    """Whether it was done in time; it is cancelled if not."""
    try:
        async with asyncio.timeout(seconds):
            await what
    except TimeoutError:
        return False
    return True
