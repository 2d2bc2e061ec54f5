"""Workers whose ranks are one MPI world: a step of Slurm's over the worker's nodes.

The agent of the first node starts it, and ends it by ending srun; the agents of the others have no
part in it. The step shares CPUs, memory and GPUs with that of the agents.

Source: srun(1); Slurm's own start of TensorRT-LLM (its examples/disaggregated/slurm).
"""

import os
import sys
from collections.abc import Sequence

from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import rank
from hpc_dynamo.launch.node import whoami
from hpc_dynamo.launch.slurm import mpi_type
from hpc_dynamo.topology import Plan, Worker

KEPT = ("SLURM_JOB_ID", "SLURM_CONF")  # of the job's environment: all that srun needs of it
REST_S = 10  # for the other ranks, once one has ended


def refuse_without_slurm(launcher: Launcher) -> None:
    """Raises ConfigError where no step can be started."""
    if launcher is Launcher.local:
        what = "cluster.launcher=local starts no MPI ranks over nodes"
        hint = "cluster.launcher=slurm, or workers that fit on this machine"
        raise ConfigError(what, hint=hint)


def step(config: Config, plan: Plan, worker: Worker, argv: Sequence[str]) -> tuple[str, ...]:
    """The command of the whole world, each rank of which is to run `argv`.

    To be run inside the job, with `environment()`. Asks Slurm: not for an event loop.
    """
    hosts = whoami(plan.nodes)[1]
    nodes = [hosts[shard.node - plan.first_node] for shard in worker.shards]
    each = len(worker.shards[0].gpus)
    gpus = "/".join(",".join(map(str, shard.gpus)) for shard in worker.shards)
    options = (
        "--overlap",
        f"--mpi={mpi_type(config)}",
        f"--job-name=worker-{worker.rank}",
        f"--nodelist={','.join(nodes)}",
        f"--nodes={len(nodes)}",
        f"--ntasks={each * len(nodes)}",
        f"--ntasks-per-node={each}",
        "--distribution=block",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        f"--wait={REST_S}",
        "--label",
    )
    return ("srun", *options, sys.executable, "-I", "-S", rank.__file__, gpus, *argv)


def environment() -> dict[str, str]:
    """What srun needs to know of our job."""
    return {name: os.environ[name] for name in KEPT if name in os.environ}
