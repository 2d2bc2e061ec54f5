"""Further jobs of an attempt: those that its head asks for under load, and those that were asked
for with its own, of other kinds of nodes."""

import asyncio
import logging
import sys
import time
from collections.abc import Iterable

from msgspec import structs

from hpc_dynamo.config import Config, Launcher, walltime_minutes
from hpc_dynamo.errors import ConfigError, LaunchError, MissingDependency
from hpc_dynamo.launch.environment import for_submission
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.slurm import SlurmJob, slurm_command
from hpc_dynamo.messages import ExtraJobState
from hpc_dynamo.run import Attempt, ExtraJobFolder, write_json
from hpc_dynamo.topology import Plan, plan_extra_job

SUBMITTER = "hpc_dynamo.launch.extra_job_submit"
SUBMIT_S = 120.0
# One that Slurm started again would be nobody's: the head has asked for another by then.
ENVIRONMENT = {"SBATCH_NO_REQUEUE": "1"}

log = logging.getLogger(__name__)


def check_scale_out(config: Config, layout: Plan, launcher: Launcher) -> None:
    """Refuse, before anything starts, further jobs that could not. Raises ConfigError."""
    if not config.planner.scale_out.max_nodes:
        return
    for role, _ in config.topology.pools:
        plan_extra_job(config, layout, role, config.planner.scale_out.nodes_per_job)
    if launcher is Launcher.local and layout.gpus_per_node:
        what = "planner.scale_out needs Slurm: further processes on this machine had the same GPUs"
        raise ConfigError(what, hint="planner.scale_out.max_nodes=0, or cluster.launcher=slurm")


async def submit(job: ExtraJobFolder, time_s: float) -> str:
    """Its id; a record of it is in its folder then. Raises LaunchError."""
    argv = (sys.executable, "-m", SUBMITTER, str(job.path), str(int(time_s // 60)))
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=for_submission(()) | ENVIRONMENT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SUBMIT_S):
            out, err = await process.communicate()
    except TimeoutError as e:
        process.kill()
        await process.wait()
        raise LaunchError(f"no further job was submitted within {SUBMIT_S:.0f} s") from e
    if process.returncode:
        said = err.decode(errors="replace").strip().rpartition("\n")[2]
        hint = "whether this node may submit jobs, and as the run's own are"
        raise LaunchError(f"no further job could be submitted: {said}", hint=hint)
    return out.decode().split()[-1]


def submit_group_jobs(attempt: Attempt, config: Config, plan: Plan) -> tuple[str, ...]:
    """A job for each kind of nodes but the first, which is the head's; their ids. Raises
    LaunchError, with none of them left in the queue."""
    asked, time_s = list[str](), 60.0 * walltime_minutes(config.cluster.slurm.time)
    try:
        for part in plan.group_plans[1:]:
            asked.append(asyncio.run(submit(attempt.new_extra_job(part), time_s)))
    except LaunchError:
        if asked:
            slurm_command("scancel", *asked)
        raise
    return tuple(asked)


def stop_leftover_jobs(left: Iterable[ExtraJobFolder], silence_s: float) -> None:
    """End what a head left behind that could not do it itself, and write that down. Agents that
    nobody ends do so `silence_s` after their head."""
    for folder in left:
        state = folder.state()
        if state and state.state is ExtraJobState.ended:
            continue
        try:
            _stop(folder)
        except (LaunchError, MissingDependency) as e:
            log.warning("further job %s of %s: %s", folder.number, folder.path, e)
            continue
        if state is None:  # no head ever saw it
            continue
        seen_at = min(state.running_until + silence_s, time.time()) if state.running_since else 0.0
        why = "left behind by a head that died"
        ended = structs.replace(state, state=ExtraJobState.ended, detail=why, running_until=seen_at)
        write_json(folder.state_file, ended)


def _stop(folder: ExtraJobFolder) -> None:
    record = folder.job()
    if record:
        job = LocalJob(record, folder) if record.launcher == "local" else SlurmJob(record)
        if job.state()[0] is not JobState.ended:
            job.stop()
