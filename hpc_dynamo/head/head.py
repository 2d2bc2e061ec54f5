"""Runs one attempt to its outcome: start, work, shutdown in that order."""

import asyncio
import logging
import time
from collections.abc import Callable

from hpc_dynamo.agent import Agent
from hpc_dynamo.config import Task
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.head.batch import BatchWork
from hpc_dynamo.head.membership import Membership
from hpc_dynamo.head.serve import ServeWork
from hpc_dynamo.head.work import Job, Work
from hpc_dynamo.http import Client
from hpc_dynamo.launch.node import allocation_end
from hpc_dynamo.messages import ControlMessage, Outcome, Roster, Status
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import Server

STATUS_S = 1.0
FAREWELL_S = 10.0  # for an agent to answer, beyond what its engines may take to end
FLUSH_S = 30.0  # kept free at the end of the walltime

WORK: dict[Task, Callable[[Job], Work]] = {Task.batch: BatchWork, Task.serve: ServeWork}

log = logging.getLogger(__name__)


class Head:
    """One attempt. Signals and failures only set the outcome; `run` acts on it."""

    def __init__(self, attempt: Attempt, roster: Roster, server: Server[ControlMessage]) -> None:
        self._attempt, self._roster, self._server = attempt, roster, server
        self._config = attempt.config()
        self._work: Work | None = None
        self._phase = ""  # ours, before and after the work's own
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """The job is over; the first reason counts."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def interrupt(self) -> None:
        """End now; what is finished is on disk."""
        starting = Outcome(exit_code=1, message="stopped while starting")
        self.end(self._work.stopped if self._work else starting)

    def drain(self) -> None:
        """The walltime ends soon: begin nothing, let what is under way end."""
        log.info("the walltime ends soon: draining")
        if self._work:
            self._work.drain()
        spare_s = self._config.cluster.slurm.signal_before_end_s - FLUSH_S
        asyncio.get_running_loop().call_later(max(spare_s, 1.0), self.interrupt)

    def fail(self, error: HpcDynamoError) -> None:
        self.end(Outcome(exit_code=error.exit_code, message=str(error)))

    @property
    def phase(self) -> str:
        return self._phase or (self._work.phase if self._work else "starting")

    async def run(self, agent: Agent) -> Outcome:
        """Returns after every agent has ended, or did not say so in time."""
        ends_at = await asyncio.to_thread(allocation_end)
        token = self._attempt.run.secrets().token
        async with Client.bearer(token) as http, asyncio.TaskGroup() as group:
            router = Router.of(self._config)
            members = Membership(self._attempt, self._roster, self._server, router, self.fail)
            job = Job(self._attempt, self._config, router, members, http)
            made = self._work = WORK[self._config.task](job)
            tasks = [
                group.create_task(members.listen(), name="control"),
                group.create_task(members.watch(), name="watch"),
                group.create_task(self._show(members, ends_at), name="status"),
                group.create_task(agent.run(), name="agent"),
            ]
            work = group.create_task(self._finish(made), name="work")
            outcome = await self._outcome
            log.info("the job ends: %s", outcome.message or "all done")
            work.cancel()
            await asyncio.wait([work])
            patience_s = self._config.engine.stop_timeout_s + FAREWELL_S
            await members.stop_all(outcome.message or "all done", patience_s)
            for background in tasks:
                background.cancel()
        self._phase = "done" if outcome.exit_code == 0 else "ended"
        write_json(self._attempt.status_file, self._status(members, ends_at, outcome.message))
        return outcome

    async def _finish(self, work: Work) -> None:
        try:
            self.end(await work.run())
        except* HpcDynamoError as group:
            self.fail(_first(group))

    async def _show(self, members: Membership, ends_at: float | None) -> None:
        """Keep the status file fresh. Runs until cancelled."""
        while True:
            status = self._status(members, ends_at)
            try:
                await asyncio.to_thread(write_json, self._attempt.status_file, status)
            except OSError as e:  # a full disk is the ledger's to complain about
                log.warning("no status written: %s", e)
            await asyncio.sleep(STATUS_S)

    def _status(self, members: Membership, ends_at: float | None, detail: str = "") -> Status:
        status = Status(
            phase=self.phase,
            at=time.time(),
            detail=detail,
            ends_at=ends_at,
            workers=members.in_order(),
        )
        return self._work.describe(status) if self._work else status


def _first(group: BaseExceptionGroup[HpcDynamoError]) -> HpcDynamoError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HpcDynamoError)
    return error
