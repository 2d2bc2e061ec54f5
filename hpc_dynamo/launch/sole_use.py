"""Check in a job, before it works on a run, that no job of an earlier attempt does so.

The command line refuses a second job for a run (`refuse_if_busy`). A job may start in spite of
that: Slurm did not respond then, or has requeued an earlier job since. The attempt with the lowest
number works on the run, so that two jobs that start at once do not both end.
"""

import time

from hpc_dynamo import launch
from hpc_dynamo.errors import RunBusy
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.run import Attempt

POLL_S = 2.0
ALIVE_S = 60.0  # a head that has written its status in this time is alive


def wait_for_earlier_jobs(attempt: Attempt, timeout_s: float) -> None:
    """Return once no job of an earlier attempt runs: the former job ends while the next one starts.

    Raises RunBusy if one still runs after `timeout_s`, or will run because Slurm has requeued it.
    """
    deadline = time.monotonic() + timeout_s
    while others := [*_earlier_jobs(attempt)]:
        number, state, detail = others[0]
        if state is JobState.pending or time.monotonic() > deadline:
            what = f"attempt {number} of {attempt.run.path} is {state} ({detail}) and continues it"
            hint = f"`hpc-dynamo status {attempt.run.path.name}` shows it; this job ends"
            raise RunBusy(f"{what}; two jobs must not work on one run", hint=hint)
        time.sleep(POLL_S)


def _earlier_jobs(attempt: Attempt) -> list[tuple[int, JobState, str]]:
    live = launch.live_attempts(attempt.run)
    return [
        (other.number, state, detail)
        for other, _, state, detail in live
        if other.number < attempt.number and (state is not JobState.unknown or _is_alive(other))
    ]


def _is_alive(attempt: Attempt) -> bool:
    """Return True if the head of an attempt has just written its status."""
    status = attempt.status()
    return status is not None and time.time() - status.at < ALIVE_S
