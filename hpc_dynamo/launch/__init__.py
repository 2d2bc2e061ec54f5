"""Starting a run where its configuration says, and finding it again later."""

import os
from collections.abc import Callable, Iterator

from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.errors import RunBusy
from hpc_dynamo.launch import local, slurm
from hpc_dynamo.launch.job import Job, JobState
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.slurm import SlurmJob, StepJob, start_step
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt, Run, write_json
from hpc_dynamo.topology import Plan


def resolve(launcher: Launcher) -> Launcher:
    """What `auto` means here: the allocation that we are in, Slurm, or this machine."""
    if launcher is not Launcher.auto:
        return launcher
    if "SLURM_JOB_ID" in os.environ:
        return Launcher.allocation
    return Launcher.slurm if slurm.available() else Launcher.local


def start(
    launcher: Launcher, attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]
) -> Job:
    """Start an attempt and leave a record of it in its folder. Raises LaunchError."""
    if launcher is Launcher.allocation:
        step = start_step(attempt, config, plan, entry.__module__)
        write_json(attempt.job_file, step.record)
        return step
    submit = slurm.submit if launcher is Launcher.slurm else local.submit
    record = submit(attempt, config, plan, entry)
    write_json(attempt.job_file, record)
    return _job(record, attempt)


def find(attempt: Attempt) -> Job | None:
    """The job of an attempt; None before it was submitted."""
    record = attempt.job()
    return _job(record, attempt) if record else None


def _job(record: JobRecord, attempt: Attempt) -> Job:
    match record.launcher:
        case "local":
            return LocalJob(record, attempt)
        case "allocation":
            return StepJob(record, attempt)
        case _:
            return SlurmJob(record)


def refuse_if_busy(run: Run) -> None:
    """Two jobs must not work on one run. Raises RunBusy."""
    for attempt, _, state, detail in going_on(run):
        if state is not JobState.unknown:
            what = f"{run.path} is in use: attempt {attempt.number} is {state} ({detail})"
            raise RunBusy(what, hint=f"`hpc-dynamo status {run.path}`, or `hpc-dynamo stop …`")


def going_on(run: Run) -> Iterator[tuple[Attempt, Job, JobState, str]]:
    """Attempts whose jobs have not ended, newest first: two, while one hands over to the next."""
    for attempt in reversed(run.attempts()):
        job = find(attempt)
        if job is None or attempt.outcome() is not None:
            continue
        state, detail = job.state()
        if state is not JobState.ended:
            yield attempt, job, state, detail


__all__ = ["Job", "JobState", "find", "going_on", "refuse_if_busy", "resolve", "start"]
