"""Further jobs of an attempt, submitted by its head.

`python -m hpc_dynamo.launch.grown JOB MINUTES` submits one, in a process without the head's own
job's environment, which would tell the new job that it is the old one.
"""

import asyncio
import importlib
import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from hpc_dynamo.child import clean_environment
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.errors import ConfigError, HpcDynamoError, LaunchError, MissingDependency
from hpc_dynamo.launch import local, slurm
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.launch.slurm import SlurmJob
from hpc_dynamo.messages import GrownState
from hpc_dynamo.run import Grown, write_json
from hpc_dynamo.topology import Plan, fill

ENTRY = "hpc_dynamo.join"  # by name: it is of a higher layer
SUBMIT_S = 120.0
# One that Slurm started again would be nobody's: the head has asked for another by then.
ENVIRONMENT = {"SBATCH_NO_REQUEUE": "1"}

log = logging.getLogger(__name__)


def check(config: Config, layout: Plan, launcher: Launcher) -> None:
    """Refuse, before anything starts, further jobs that could not. Raises ConfigError."""
    if not config.planner.grow.nodes:
        return
    for role, _ in config.topology.pools:
        fill(config, layout, role, config.planner.grow.nodes_each)
    if launcher is Launcher.local and layout.gpus_per_node:
        what = "planner.grow needs Slurm: further processes on this machine had the same GPUs"
        raise ConfigError(what, hint="planner.grow.nodes=0, or cluster.launcher=slurm")


async def submit(job: Grown, time_s: float) -> str:
    """Its id; a record of it is in its folder then. Raises LaunchError."""
    argv = (sys.executable, "-m", __name__, str(job.path), str(int(time_s // 60)))
    kept = {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=clean_environment(ENVIRONMENT | kept),
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
        hint = "whether nodes may submit jobs here; planner.grow.nodes=0 does without"
        raise LaunchError(f"no further job could be submitted: {said}", hint=hint)
    return out.decode().split()[-1]


def clear(left: Iterable[Grown], silence_s: float) -> None:
    """End what a head left behind that could not do it itself, and write that down. Agents that
    nobody ends do so `silence_s` after their head."""
    for folder in left:
        state = folder.state()
        if state is None or state.state is GrownState.ended:
            continue
        try:
            _stop(folder)
        except (LaunchError, MissingDependency) as e:
            log.warning("further job %s of %s: %s", state.job_id, folder.path, e)
            continue
        seen_at = min(state.seen_at + silence_s, time.time()) if state.began_at else 0.0
        why = "left behind by a head that died"
        ended = structs.replace(state, state=GrownState.ended, detail=why, seen_at=seen_at)
        write_json(folder.state_file, ended)


def _stop(folder: Grown) -> None:
    record = folder.job()
    if record:
        job = LocalJob(record, folder) if record.launcher == "local" else SlurmJob(record)
        if job.state()[0] is not JobState.ended:
            job.stop()


def main(path: str, minutes: str) -> None:
    job = Grown(Path(path))
    config, plan, owner = job.config(), job.plan(), job.attempt.job()
    start = local.submit if owner and owner.launcher == "local" else slurm.submit
    entry = importlib.import_module(ENTRY).main
    record = start(job, _config(config, job.number, minutes), _from_zero(plan), entry)
    write_json(job.job_file, record)
    print(record.job_id)


def _config(config: Config, number: int, minutes: str) -> Config:
    """Of the run, as the further job is to be asked for; its agents need no MPI."""
    wanted = replace(config.cluster.slurm, time=minutes, mpi="none")
    cluster = replace(config.cluster, slurm=wanted)
    return replace(config, name=f"{config.name}+{number}", cluster=cluster)


def _from_zero(plan: Plan) -> Plan:
    """What it asks of Slurm is counted over its own nodes."""
    return plan.after(0, -plan.first_node)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except HpcDynamoError as e:
        sys.exit(e.message)
