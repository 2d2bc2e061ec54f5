"""Whether an attempt still goes on: its files first, its job without asking Slurm too often."""

import time
from pathlib import Path

from hpc_dynamo.launch import Job, JobState
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt

LOOK_S = 0.25  # at the run folder: files have no events across nodes
ASK_S = 3.0  # Slurm, which many ask
SHARED_DISK_S = 10.0  # for an outcome to be seen after its job has left the queue


class Watch:
    """Looks at an attempt from outside. `state` and `detail` are the job's, as last heard."""

    def __init__(self, attempt: Attempt, job: Job) -> None:
        self.attempt, self._job = attempt, job
        self.state, self.detail = JobState.unknown, "not asked yet"
        self._asked_at = self._ended_at = 0.0

    @property
    def waiting(self) -> str:
        """What a job that does not run is waiting for; empty for one that runs."""
        return "" if self.state is JobState.running else f"{self.state}, {self.detail}"

    def outcome(self) -> Outcome | None:
        """None while the attempt goes on. A job that is gone without an outcome gets one here."""
        outcome = self.attempt.outcome()
        if outcome is not None:
            return outcome
        if time.monotonic() - self._asked_at > ASK_S:
            self._ask()
        gone_s = time.monotonic() - self._ended_at if self._ended_at else 0.0
        return vanished(self.attempt, self.detail) if gone_s > SHARED_DISK_S else None

    def _ask(self) -> None:
        self.state, self.detail = self._job.state()
        self._asked_at = time.monotonic()
        if self.state is not JobState.ended:
            self._ended_at = 0.0
        elif not self._ended_at:
            self._ended_at = self._asked_at


def vanished(attempt: Attempt, detail: str) -> Outcome:
    """What can be said of a job that left no outcome."""
    rows = [f"the job ended without a word ({detail}): killed, or out of memory or time?"]
    rows += [f"  {file}: {tail}" for file in _complaints(attempt) if (tail := _last_line(file))]
    rows += [f"  logs: {attempt.logs} and {attempt.submitit}"]
    rows += ["  try: the same command goes on from here"]
    return Outcome(exit_code=1, message="\n".join(rows))


def _complaints(attempt: Attempt) -> list[Path]:
    return sorted([*attempt.submitit.glob("*.err"), *attempt.logs.glob("agent-*.log")])


def _last_line(file: Path) -> str:
    return next(reversed(file.read_text(errors="replace").splitlines()), "")
