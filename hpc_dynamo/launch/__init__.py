"""Starting a run where its configuration says, and finding it again later."""

import os

from hpc_dynamo.config import Launcher
from hpc_dynamo.errors import RunBusy
from hpc_dynamo.launch.job import Job, JobState
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.slurm import SlurmJob, available
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt, Run


def resolve(launcher: Launcher) -> Launcher:
    """What `auto` means here: the allocation that we are in, Slurm, or this machine."""
    if launcher is not Launcher.auto:
        return launcher
    if "SLURM_JOB_ID" in os.environ:
        return Launcher.allocation
    return Launcher.slurm if available() else Launcher.local


def find(attempt: Attempt) -> Job | None:
    """The job of an attempt; None before it was submitted."""
    record = attempt.job()
    if record is None:
        return None
    return LocalJob(record, attempt) if record.launcher == "local" else SlurmJob(record)


def refuse_if_busy(run: Run) -> None:
    """Two jobs must not work on one run. Raises RunBusy."""
    for attempt in reversed(run.attempts()):
        job = find(attempt)
        if job is None or attempt.outcome() is not None or is_ours(attempt.job()):
            continue
        state, detail = job.state()
        if state in (JobState.pending, JobState.running):
            what = f"{run.path} is in use: attempt {attempt.number} is {state} ({detail})"
            raise RunBusy(what, hint=f"hpc-dynamo status name={run.path.name}, or … stop")


def is_ours(record: JobRecord | None) -> bool:
    """True for an attempt of the Slurm job that we are in: requeued, it succeeds itself."""
    here = os.environ.get("SLURM_JOB_ID")
    return record is not None and here is not None and record.job_id == here


__all__ = ["Job", "JobState", "find", "refuse_if_busy", "resolve"]
