"""Runs one attempt to its outcome: start, work, shutdown in that order."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from hpc_dynamo.agent import Agent
from hpc_dynamo.batch import report
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.batch.requests import scan
from hpc_dynamo.batch.runner import Runner
from hpc_dynamo.dispatch import Dispatcher, session
from hpc_dynamo.engines import engine
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.head.membership import Membership
from hpc_dynamo.launch.node import allocation_end
from hpc_dynamo.messages import ControlMessage, Outcome, Progress, Roster, Status
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import Server

STATUS_S = 1.0
FAREWELL_S = 10.0  # for an agent to answer, beyond what its engines may take to end
FLUSH_S = 30.0  # kept free at the end of the walltime

log = logging.getLogger(__name__)


class Head:
    """One attempt. Signals and failures only set the outcome; `run` acts on it."""

    def __init__(self, attempt: Attempt, roster: Roster, server: Server[ControlMessage]) -> None:
        self._attempt, self._roster, self._server = attempt, roster, server
        self._config = attempt.config()
        self._engine = engine(self._config.engine.name)
        self._phase = "starting"
        self._progress: Callable[[], Progress] = Progress
        self._begin_no_more: Callable[[], None] = lambda: None
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """The job is over; the first reason counts."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def interrupt(self) -> None:
        """End now; what is finished is on disk."""
        why = f"stopped while {self._phase}; the same command goes on from here"
        self.end(Outcome(exit_code=1, message=why))

    def drain(self) -> None:
        """The walltime ends soon: begin nothing, let what is under way end."""
        self._phase = "draining"
        self._begin_no_more()
        spare_s = self._config.cluster.slurm.signal_before_end_s - FLUSH_S
        asyncio.get_running_loop().call_later(max(spare_s, 1.0), self.interrupt)

    def fail(self, error: HpcDynamoError) -> None:
        self.end(Outcome(exit_code=error.exit_code, message=str(error)))

    async def run(self, agent: Agent) -> Outcome:
        """Returns after every agent has ended, or did not say so in time."""
        ends_at = await asyncio.to_thread(allocation_end)
        async with session(self._attempt.run.secrets().token) as http, asyncio.TaskGroup() as group:
            dispatcher = Dispatcher(self._config.topology.kind, self._engine.dialect, http)
            members = Membership(self._attempt, self._roster, self._server, dispatcher, self.fail)
            tasks = [
                group.create_task(members.listen(), name="control"),
                group.create_task(members.watch(), name="watch"),
                group.create_task(self._show(members, ends_at), name="status"),
                group.create_task(agent.run(), name="agent"),
            ]
            work = group.create_task(self._work(dispatcher, http), name="work")
            outcome = await self._outcome
            log.info("the job ends: %s", outcome.message or "all done")
            work.cancel()
            patience_s = self._config.engine.stop_timeout_s + FAREWELL_S
            await members.stop_all(outcome.message or "all done", patience_s)
            for task in tasks:
                task.cancel()
        self._phase = "done" if outcome.exit_code == 0 else "ended"
        write_json(self._attempt.status_file, self._status(members, ends_at, outcome.message))
        return outcome

    async def _work(self, dispatcher: Dispatcher, http: aiohttp.ClientSession) -> None:
        try:
            self.end(await self._batch(dispatcher, http))
        except* HpcDynamoError as group:
            self.fail(_first(group))

    async def _batch(self, dispatcher: Dispatcher, http: aiohttp.ClientSession) -> Outcome:
        requests = await asyncio.to_thread(scan, Path(self._config.input))
        ledger = Ledger(self._attempt.run, self._attempt.number)
        runner = Runner(self._config, requests, ledger, dispatcher)
        self._progress, self._begin_no_more = runner.progress, runner.stop
        self._phase = "loading"
        await dispatcher.ready(role for role, _ in self._config.topology.pools)
        before = await report.read(http, dispatcher.members, self._engine.metrics)
        self._phase = "running"
        complete = await runner.run()
        after = await report.read(http, dispatcher.members, self._engine.metrics)
        if not complete:
            return Outcome(exit_code=1, message="the walltime ended; the same command goes on")
        await asyncio.to_thread(ledger.merge, [entry.custom_id for entry in requests.entries])
        figures = report.summarise(dispatcher.members, before, after, runner.progress())
        if figures.progress.failed and not figures.progress.done:
            why = f"no request was answered; the first of them: {runner.first_failure}"
            return Outcome(exit_code=3, message=why, summary=figures)
        return Outcome(exit_code=0, summary=figures)

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
        return Status(
            phase=self._phase,
            at=time.time(),
            detail=detail,
            ends_at=ends_at,
            workers=tuple(members.workers[rank] for rank in sorted(members.workers)),
            progress=self._progress(),
        )


def _first(group: BaseExceptionGroup[HpcDynamoError]) -> HpcDynamoError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HpcDynamoError)
    return error
