"""Launchers of jobs: Slurm, a step in an allocation, or this machine. The only user of submitit.

`start_attempt` starts an attempt of a run, and `find_job` returns its job from the record in the
run folder, in any later process.

    job.py                     LaunchedJob, the interface of all jobs
    slurm.py hetjob.py         submitted jobs; nodes of several kinds as one heterogeneous job
    allocation.py local.py     a step in an existing allocation; processes on this machine
    sbatch_script.py srun.py   texts of sbatch scripts and of srun's command
    resources.py               nodes, CPUs, memory and GPUs to request
    partitions.py layout_check.py gpu_requests.py   sinfo, and whether a layout can run there
    enclosing.py environment.py node.py             allocation and environment of this process
    refusal.py reasons.py      explanations of sbatch's errors, pending reasons and final states
    walltime.py                time left before the end of the allocation
    retry.py excluded_nodes.py                      another job without nodes that failed
    sole_use.py exit_code.py   one job at a time works on a run; its exit code for Slurm
    mpi_step.py mpi_rank.py    workers that are Slurm steps: MPI worlds, engines under Pyxis
    extra_jobs.py next_attempt.py   more jobs of a run; requeue, or submission of its next attempt
    detached_submit.py extra_job_submit.py          submission of a job from inside a job
"""

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace

from msgspec import structs

from hpc_dynamo.config import Config, Heterogeneous, Launcher, require_single_model, with_hardware
from hpc_dynamo.errors import ConfigError, LaunchError, MissingDependency, RunBusy
from hpc_dynamo.launch import current_allocation, extra_jobs, hetjob, local, slurm
from hpc_dynamo.launch.allocation_launcher import StepJob, start_step
from hpc_dynamo.launch.job import JobState, LaunchedJob
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.node import is_requeued
from hpc_dynamo.launch.slurm import SlurmJob
from hpc_dynamo.messages import JobRecord, Outcome
from hpc_dynamo.run import Attempt, Run, write_json
from hpc_dynamo.topology import Plan

log = logging.getLogger(__name__)


def resolve_launcher(launcher: Launcher) -> Launcher:
    """Return the launcher for `auto`: the enclosing allocation, Slurm, or this machine.

    Raises ConfigError if steps would be started in an allocation that has ended.
    """
    if launcher is Launcher.auto and "SLURM_JOB_ID" in os.environ:
        launcher = Launcher.allocation
    if launcher is Launcher.allocation:
        current_allocation.require_allocation()
    if launcher is not Launcher.auto:
        return launcher
    return Launcher.slurm if slurm.available() else Launcher.local


def with_submission_mode(launcher: Launcher, config: Config, plan: Plan) -> Plan:
    """Return the plan with `separate_jobs` set: whether node groups are components of one job, or
    jobs of their own. Raises ConfigError if this launcher can have only one group.
    """
    if len(plan.group_plans) == 1 or launcher is Launcher.allocation:
        return plan
    if launcher is Launcher.local:
        if plan.gpus_per_node:
            what = "node groups need Slurm: on this machine all would have the same GPUs"
            raise ConfigError(what, hint="cluster.launcher=slurm, or no topology.*.hardware")
        return plan
    mixed = config.cluster.slurm.heterogeneous
    if mixed is Heterogeneous.auto:
        mixed = Heterogeneous.hetjob if slurm.starts_hetjobs() else Heterogeneous.jobs
    if mixed is Heterogeneous.jobs:
        require_single_model(config.models, "cluster.slurm.heterogeneous=jobs")
    return replace(plan, separate_jobs=mixed is Heterogeneous.jobs)


def start_attempt(
    launcher: Launcher, attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]
) -> LaunchedJob:
    """Start an attempt and write a record of its job to its folder. Raises LaunchError."""
    if launcher is Launcher.allocation:
        step = start_step(attempt, config, plan, entry.__module__)
        write_json(attempt.job_file, step.record)
        return step
    inside = os.environ.get("SLURM_JOB_ID", "")
    # Submitted first, since the head submits those that it does not find.
    others = (
        extra_jobs.submit_group_jobs(attempt, config.cluster, plan) if plan.separate_jobs else ()
    )
    try:
        record = _submit(launcher, attempt, config, plan.head_plan, entry)
    except BaseException:
        if others:
            slurm.slurm_command("scancel", *others)
        raise
    record = structs.replace(record, enclosing_job_id=inside, hetero_job_ids=others)
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
    """Return the job of an attempt; None if it was not submitted yet."""
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
    """Raise RunBusy if an attempt of the run is pending or running."""
    for attempt, _, state, detail in live_attempts(run):
        if state is not JobState.unknown:
            what = f"{run.path} is in use: attempt {attempt.number} is {state} ({detail})"
            path = shlex.quote(str(run.path))
            hint = f"name=OTHER starts another run; `hpc-dynamo stop {path}` stops this one"
            raise RunBusy(what, hint=hint)


def current_outcome(attempt: Attempt, job: LaunchedJob | None) -> Outcome | None:
    """Return the outcome of an attempt, but None if Slurm has requeued its job since.

    Slurm requeues a job whose node fails, after its head got the signal to end.
    """
    outcome = attempt.outcome()
    if outcome is None or job is None:
        return outcome
    try:
        return None if job.continues_after(outcome) else outcome
    except (LaunchError, MissingDependency) as e:
        log.warning("unknown if Slurm has requeued the job of %s: %s", attempt.path, e)
        return outcome


def live_attempts(run: Run) -> Iterator[tuple[Attempt, LaunchedJob, JobState, str]]:
    """Yield attempts whose jobs have not ended, newest first. There are two during a job
    handover."""
    for attempt in reversed(run.attempts()):
        job = find_job(attempt)
        if job is None or current_outcome(attempt, job) is not None:
            continue
        state, detail = job.state()
        if state is not JobState.ended:
            yield attempt, job, state, detail


__all__ = [
    "JobState",
    "LaunchedJob",
    "current_outcome",
    "find_job",
    "is_restarted_job",
    "live_attempts",
    "refuse_if_busy",
    "resolve_launcher",
    "start_attempt",
    "with_submission_mode",
]
