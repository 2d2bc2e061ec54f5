"""Extra jobs of an attempt: for scale-out, or of other node groups (`heterogeneous=jobs`).

    head or CLI                        Slurm                    extra job (tasks/join)
      new_extra_job(): folder
      submit() ── extra_job_submit ──▶ sbatch
               ◀─ job.json, id
                                       starts ────────────────▶ agents connect to the head
      stop_leftover_jobs() ──────────▶ scancel                  (of a head that died)

`head/scaling/extra_job.py` follows a job from its submission to its end.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from msgspec import structs

from hpc_dynamo.config import Cluster, Config, Launcher, walltime_minutes
from hpc_dynamo.errors import ConfigError, LaunchError, MissingDependency
from hpc_dynamo.launch.detached_submit import submit_detached
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.slurm import SlurmJob, slurm_command
from hpc_dynamo.messages import ExtraJobState, Roster
from hpc_dynamo.run import Attempt, ExtraJobFolder, write_json
from hpc_dynamo.topology import Plan, plan_extra_job

SUBMITTER = "hpc_dynamo.launch.extra_job_submit"
# The head submits another job for a lost one, so Slurm must not restart it.
ENVIRONMENT = {"SBATCH_NO_REQUEUE": "1"}

CONTINUES = (ExtraJobState.pending, ExtraJobState.running)

log = logging.getLogger(__name__)


def check_extra_jobs(config: Config, layout: Plan, launcher: Launcher) -> None:
    """Raise ConfigError if scale-out is enabled and its jobs could not start."""
    if not config.planner.scale_out.max_nodes:
        return
    for role, _ in config.topology.pools:
        plan_extra_job(config.topology, layout, role, config.planner.scale_out.nodes_per_job)
    if launcher is Launcher.local and layout.gpus_per_node:
        what = (
            "planner.scale_out needs Slurm: more processes on this machine would have the same GPUs"
        )
        raise ConfigError(what, hint="planner.scale_out.max_nodes=0, or cluster.launcher=slurm")


async def submit(folder: ExtraJobFolder, time_s: float) -> str:
    """Submit an extra job and write its record to its folder. Returns its id. Raises
    LaunchError."""
    args = (str(folder.path), str(int(time_s // 60)))
    return await submit_detached("the extra job", SUBMITTER, *args, env=ENVIRONMENT)


def submit_group_jobs(attempt: Attempt, cluster: Cluster, plan: Plan) -> tuple[str, ...]:
    """Submit a job for each node group but the first, which is the head's. Returns their ids.

    Raises LaunchError after cancelling those already submitted.
    """
    submitted, time_s = list[str](), 60.0 * walltime_minutes(cluster.slurm.time)
    try:
        for group in plan.group_plans[1:]:
            submitted.append(asyncio.run(submit(attempt.new_extra_job(group), time_s)))
    except LaunchError:
        if submitted:
            slurm_command("scancel", *submitted)
        raise
    return tuple(submitted)


def current_jobs(attempt: Attempt, roster: Roster) -> list[ExtraJobFolder]:
    """Return the extra jobs with which a restarted head continues.

    An earlier head of the same execution of the job left them. Agents of jobs from before a requeue
    look for the head at another address.
    """
    first = roster.restart_count == 0
    began = roster.nodes[0].started_at
    return [
        folder
        for folder in attempt.extra_jobs()
        if (state := folder.state()) and state.state in CONTINUES
        if (record := folder.job()) and (first or record.submitted_at > began)
    ]


def stop_leftover_jobs(folders: Iterable[ExtraJobFolder], heartbeat_timeout_s: float) -> None:
    """Stop extra jobs of a head that died, and write their end to their state files.

    Their agents end themselves `heartbeat_timeout_s` after their head.
    """
    for folder in folders:
        state = folder.state()
        if state and state.state is ExtraJobState.ended:
            continue
        try:
            _stop(folder)
        except (LaunchError, MissingDependency) as e:
            log.warning("extra job %s in %s: %s", folder.number, folder.path, e)
            continue
        if state is None:  # no head ever followed it
            continue
        until = (
            min(state.running_until + heartbeat_timeout_s, time.time())
            if state.running_since
            else 0.0
        )
        detail = "stopped after its head died"
        ended = structs.replace(
            state, state=ExtraJobState.ended, detail=detail, running_until=until
        )
        write_json(folder.state_file, ended)


def _stop(folder: ExtraJobFolder) -> None:
    record = folder.job()
    if record:
        job = LocalJob(record, folder) if record.launcher == "local" else SlurmJob(record)
        if job.state()[0] is not JobState.ended:
            job.cancel()
