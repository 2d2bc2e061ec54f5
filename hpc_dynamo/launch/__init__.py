"""Starting a run where its configuration says, and finding it again later."""

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace

from msgspec import structs

from hpc_dynamo.config import Config, Heterogeneous, Launcher, require_single_model, with_hardware
from hpc_dynamo.errors import ConfigError, RunBusy
from hpc_dynamo.launch import enclosing, extra_jobs, hetjob, local, slurm
from hpc_dynamo.launch.allocation import StepJob, start_step
from hpc_dynamo.launch.job import JobState, LaunchedJob
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.node import is_requeued
from hpc_dynamo.launch.slurm import SlurmJob
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt, Run, write_json
from hpc_dynamo.topology import Plan


def resolve_launcher(launcher: Launcher) -> Launcher:
    """Return what `auto` means here: the enclosing allocation, Slurm, or this machine.

    Raises ConfigError if steps shall be started in an allocation that has ended.
    """
    if launcher is Launcher.auto and "SLURM_JOB_ID" in os.environ:
        launcher = Launcher.allocation
    if launcher is Launcher.allocation:
        enclosing.require_allocation()
    if launcher is not Launcher.auto:
        return launcher
    return Launcher.slurm if slurm.available() else Launcher.local


def with_submission_mode(launcher: Launcher, config: Config, plan: Plan) -> Plan:
    """The plan with how its kinds of nodes are asked for: in one job, or each in its own. Raises
    ConfigError where there can be only one kind."""
    if len(plan.group_plans) == 1 or launcher is Launcher.allocation:
        return plan
    if launcher is Launcher.local:
        if plan.gpus_per_node:
            what = "nodes of several kinds need Slurm: all groups here would have the same GPUs"
            raise ConfigError(what, hint="cluster.launcher=slurm, or no topology.*.hardware")
        return plan
    mixed = config.cluster.slurm.heterogeneous
    if mixed is Heterogeneous.auto:
        mixed = Heterogeneous.hetjob if slurm.starts_hetjobs() else Heterogeneous.jobs
    if mixed is Heterogeneous.jobs:
        require_single_model(config, "cluster.slurm.heterogeneous=jobs")
    return replace(plan, separate_jobs=mixed is Heterogeneous.jobs)


def start_attempt(
    launcher: Launcher, attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]
) -> LaunchedJob:
    """Start an attempt and leave a record of it in its folder. Raises LaunchError."""
    if launcher is Launcher.allocation:
        step = start_step(attempt, config, plan, entry.__module__)
        write_json(attempt.job_file, step.record)
        return step
    inside = os.environ.get("SLURM_JOB_ID", "")
    # First the jobs of other kinds of nodes: the head submits those that it does not find.
    beside = extra_jobs.submit_group_jobs(attempt, config, plan) if plan.separate_jobs else ()
    try:
        record = _submit(launcher, attempt, config, plan.head_plan, entry)
    except BaseException:
        if beside:
            slurm.slurm_command("scancel", *beside)
        raise
    record = structs.replace(record, enclosing_job_id=inside, hetero_job_ids=beside)
    write_json(attempt.job_file, record)
    return _job(record, attempt)


def _submit(
    launcher: Launcher, attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]
) -> JobRecord:
    if launcher is Launcher.local:
        return local.submit(attempt, config, plan, entry)
    if len(plan.group_plans) > 1:
        return hetjob.submit(attempt, config, plan, entry.__module__)
    return slurm.submit(attempt, with_hardware(config, plan.hardware), plan, entry)


def is_restarted_job(run: Run) -> bool:
    """Return True if Slurm has restarted the job of this process and its earlier attempt worked on
    this run."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id or not is_requeued():
        return False
    records = (attempt.job() for attempt in run.attempts())
    return any(job_id in (record.job_id, record.enclosing_job_id) for record in records if record)


def find_job(attempt: Attempt) -> LaunchedJob | None:
    """The job of an attempt; None before it was submitted."""
    record = attempt.job()
    return _job(record, attempt) if record else None


def _job(record: JobRecord, attempt: Attempt) -> LaunchedJob:
    match record.launcher:
        case "local":
            return LocalJob(record, attempt)
        case "allocation":
            return StepJob(record, attempt)
        case _:
            return SlurmJob(record)


def refuse_if_busy(run: Run) -> None:
    """Two jobs must not work on one run. Raises RunBusy."""
    for attempt, _, state, detail in live_attempts(run):
        if state is not JobState.unknown:
            what = f"{run.path} is in use: attempt {attempt.number} is {state} ({detail})"
            path = shlex.quote(str(run.path))
            hint = f"name=OTHER for a second one; `hpc-dynamo stop {path}` ends it"
            raise RunBusy(what, hint=hint)


def live_attempts(run: Run) -> Iterator[tuple[Attempt, LaunchedJob, JobState, str]]:
    """Attempts whose jobs have not ended, newest first: two, while one hands over to the next."""
    for attempt in reversed(run.attempts()):
        job = find_job(attempt)
        if job is None or attempt.outcome() is not None:
            continue
        state, detail = job.state()
        if state is not JobState.ended:
            yield attempt, job, state, detail


__all__ = [
    "JobState",
    "LaunchedJob",
    "find_job",
    "is_restarted_job",
    "live_attempts",
    "refuse_if_busy",
    "resolve_launcher",
    "start_attempt",
    "with_submission_mode",
]
