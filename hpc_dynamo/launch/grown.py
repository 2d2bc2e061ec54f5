"""Further jobs of an attempt, submitted by its head.

`python -m hpc_dynamo.launch.grown JOB MINUTES` submits one, in a process without the head's own
job's environment, which would tell the new job that it is the old one.
"""

import asyncio
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from hpc_dynamo.child import clean_environment
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.errors import ConfigError, LaunchError
from hpc_dynamo.launch import local, slurm
from hpc_dynamo.run import Grown, write_json
from hpc_dynamo.topology import Plan, fill

ENTRY = "hpc_dynamo.join"  # by name: it is of a higher layer
SUBMIT_S = 120.0
# One that Slurm started again would be nobody's: the head has asked for another by then.
ENVIRONMENT = {"SBATCH_NO_REQUEUE": "1"}


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
    main(*sys.argv[1:])
