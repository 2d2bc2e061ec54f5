"""State of an attempt: from its files, and at intervals from Slurm."""

import math
import time

from hpc_dynamo.cli.missing_outcome import missing_outcome
from hpc_dynamo.launch import JobState, LaunchedJob
from hpc_dynamo.launch.reasons import NEVER_RAN
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt

POLL_S = 0.25  # between checks of the run folder: files have no events across nodes
QUERY_S = 3.0  # between requests to Slurm's controller, which many users share
CANCEL_AFTER_S = 60.0  # a job that was stopped and still runs is cancelled
QUERY_STOPPING_S = 1.0  # the same for a job that is being stopped
# Waits for an outcome after the end of the job. A shared disk may show it late; none is expected
# of a job that its user has stopped.
OUTCOME_WAIT_S = 10.0
OUTCOME_WAIT_CANCELLED_S = 2.0


class RunWatcher:
    """Observes an attempt. `state` and `detail` are those of the job at the last query."""

    def __init__(self, attempt: Attempt, job: LaunchedJob) -> None:
        self.attempt, self._job = attempt, job
        self.state, self.detail = JobState.unknown, "not queried yet"
        self.cancelled = False
        self._queried_at = self._ended_at = 0.0
        self._cancel_at = math.inf

    @property
    def waiting(self) -> str:
        """Return why the job is not running; empty if it runs or has ended."""
        known = self.state in (JobState.pending, JobState.unknown)
        return f"{self.state}: {self.detail}" if known and self._queried_at else ""

    def cancel(self) -> None:
        """Handle a stop by the user: query the job's state at once, and expect no outcome."""
        if not self.cancelled:
            self.cancelled, self._queried_at = True, 0.0
            self._cancel_at = time.monotonic() + CANCEL_AFTER_S

    def outcome(self) -> Outcome | None:
        """Return the outcome, or None while the attempt runs.

        A job that ended without an outcome gets one here.
        """
        outcome = self.attempt.outcome()
        if outcome is not None and not self._may_continue(outcome):
            return outcome
        if time.monotonic() - self._queried_at > self._query_interval_s:
            self._query()
        if time.monotonic() > self._cancel_at and self.state is JobState.running:
            self._cancel_at = math.inf
            self._job.cancel()
        if not self._ended_at or time.monotonic() - self._ended_at < self._outcome_wait_s:
            return None
        return self.attempt.outcome() or missing_outcome(
            self.attempt, self.detail, cancelled=self.cancelled
        )

    def _may_continue(self, outcome: Outcome) -> bool:
        """Return True if a signal ended the job that may be Slurm's, and Slurm still has the job:
        it requeues the job when a node fails."""
        if self.cancelled or not outcome.stopped or not self._job.requeuable:
            return False
        if time.monotonic() - self._queried_at > QUERY_STOPPING_S:
            self._query()
        return self.state in (JobState.pending, JobState.running)

    @property
    def _query_interval_s(self) -> float:
        return QUERY_STOPPING_S if self.cancelled else QUERY_S

    @property
    def _outcome_wait_s(self) -> float:
        """Return the time to wait for an outcome after the end of the job, in seconds."""
        if self.detail == NEVER_RAN:
            return 0.0
        return OUTCOME_WAIT_CANCELLED_S if self.cancelled else OUTCOME_WAIT_S

    def _query(self) -> None:
        self.state, self.detail = self._job.state()
        self._queried_at = time.monotonic()
        if self.state is not JobState.ended:
            self._ended_at = 0.0
        elif not self._ended_at:
            self._ended_at = self._queried_at
