"""The course of one attempt, whoever its workers are: an outcome, and a status meanwhile."""

import asyncio
import logging
import time

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.head.workloads.workload import WorkerDirectory, Workload
from hpc_dynamo.messages import SOME_FAILED, Outcome, Status
from hpc_dynamo.run import Attempt, write_json

STATUS_S = 1.0

log = logging.getLogger(__name__)


class JobLifecycle:
    """Signals and failures only set the outcome; `run` of who builds on this acts on it."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._config = attempt, attempt.config()
        self._work: Workload | None = None
        self._phase = ""  # ours, before and after the work's own
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def finish_with(self, outcome: Outcome) -> None:
        """The job is over; the first reason counts."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def interrupt(self) -> None:
        """End now; what is finished is on disk."""
        starting = Outcome(exit_code=1, message="stopped while starting")
        self.finish_with(self._work.stopped_outcome if self._work else starting)

    def fail(self, error: HpcDynamoError) -> None:
        self.finish_with(Outcome(exit_code=error.exit_code, message=str(error)))

    @property
    def phase(self) -> str:
        return self._phase or (self._work.phase if self._work else "starting")

    async def _finish(self, work: Workload) -> None:
        try:
            self.finish_with(await work.run())
        except* HpcDynamoError as group:
            self.fail(_first(group))

    async def _over(self, work: "asyncio.Task[None]") -> Outcome:
        """The outcome, when there is one and the work has ended."""
        outcome = await self._outcome
        log.info("the job ends: %s", outcome.message or "all done")
        work.cancel()
        await asyncio.wait([work])
        return outcome

    async def _show(self, members: WorkerDirectory, ends_at: float | None) -> None:
        """Keep the status file fresh. Runs until cancelled."""
        while True:
            status = self._status(members, ends_at)
            try:
                await asyncio.to_thread(write_json, self._attempt.status_file, status)
            except OSError as e:  # a full disk is the ledger's to complain about
                log.warning("no status written: %s", e)
            await asyncio.sleep(STATUS_S)

    def _conclude(
        self, members: WorkerDirectory, ends_at: float | None, outcome: Outcome
    ) -> Outcome:
        """The last status."""
        self._phase = "done" if outcome.exit_code in (0, SOME_FAILED) else "ended"
        try:
            write_json(self._attempt.status_file, self._status(members, ends_at, outcome.message))
        except OSError as e:  # the outcome matters more, and its space is reserved
            log.warning("no status written: %s", e)
        return outcome

    def _status(self, members: WorkerDirectory, ends_at: float | None, detail: str = "") -> Status:
        status = Status(
            phase=self.phase,
            at=time.time(),
            detail=detail,
            ends_at=ends_at,
            workers=tuple(worker.without_operations for worker in members.in_order()),
        )
        return self._work.extend_status(status) if self._work else status


def _first(group: BaseExceptionGroup[HpcDynamoError]) -> HpcDynamoError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HpcDynamoError)
    return error
