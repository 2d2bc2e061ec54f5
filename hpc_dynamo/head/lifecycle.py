"""Lifecycle of one attempt: its outcome, and its status until then."""

import asyncio
import logging
import time

from msgspec.structs import replace

from hpc_dynamo.errors import ExitCode, HpcDynamoError, file_error
from hpc_dynamo.head.workloads.workload import WorkerDirectory, Workload
from hpc_dynamo.messages import Outcome, Status
from hpc_dynamo.run import Attempt, write_json

STATUS_INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class JobLifecycle:
    """Base class of heads. Signals and failures only set the outcome; `run` acts on it."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._config = attempt, attempt.config()
        self._workload: Workload | None = None
        self._final_phase = ""
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def finish_with(self, outcome: Outcome) -> None:
        """Set the outcome, which ends the job. Only the first one counts."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def interrupt(self) -> None:
        """End the job now, for a signal. Finished results are on disk."""
        starting = Outcome(exit_code=1, message="stopped while starting")
        outcome = self._workload.stopped_outcome if self._workload else starting
        self.finish_with(replace(outcome, stopped=True))

    def fail(self, error: HpcDynamoError) -> None:
        """End the job with an error."""
        self.finish_with(Outcome(exit_code=error.exit_code, message=str(error)))

    @property
    def phase(self) -> str:
        return self._final_phase or (self._workload.phase if self._workload else "starting")

    async def _run_workload(self, workload: Workload) -> None:
        try:
            self.finish_with(await workload.run())
        except* HpcDynamoError as group:
            self.fail(_first(group))

    async def _wait_for_outcome(self, workload: "asyncio.Task[None]") -> Outcome:
        """Return the outcome once there is one and the workload has ended."""
        outcome = await self._outcome
        log.info("the job ends: %s", outcome.message or "all done")
        workload.cancel()
        await asyncio.wait([workload])
        return outcome

    async def _write_status(self, members: WorkerDirectory, ends_at: float | None) -> None:
        """Rewrite the status file every second until cancelled. The same failure is logged once:
        the job continues, also without its run folder."""
        reported = ""
        while True:
            status = self._status(members, ends_at)
            try:
                await asyncio.to_thread(write_json, self._attempt.status_file, status)
                reported = ""
            except OSError as e:  # the ledger reports a full disk
                if reported != (reason := str(file_error(e) or e)):
                    log.warning("status not written: %s", reason)
                reported = reason
            await asyncio.sleep(STATUS_INTERVAL_S)

    def _conclude(
        self, members: WorkerDirectory, ends_at: float | None, outcome: Outcome
    ) -> Outcome:
        """Write the last status and return the outcome."""
        self._final_phase = (
            "done" if outcome.exit_code in (ExitCode.done, ExitCode.some_failed) else "ended"
        )
        try:
            write_json(self._attempt.status_file, self._status(members, ends_at, outcome.message))
        except OSError as e:  # the outcome is written later, to reserved space
            log.warning("status not written: %s", e)
        return outcome

    def _status(self, members: WorkerDirectory, ends_at: float | None, detail: str = "") -> Status:
        status = Status(
            phase=self.phase,
            at=time.time(),
            detail=detail,
            ends_at=ends_at,
            workers=tuple(worker.without_operations for worker in members.in_order()),
        )
        return self._workload.extend_status(status) if self._workload else status


def _first(group: BaseExceptionGroup[HpcDynamoError]) -> HpcDynamoError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HpcDynamoError)
    return error
