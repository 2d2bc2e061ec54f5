"""Workers whose ranks are one MPI world: a step of Slurm's over the worker's nodes.

The agent of the first node starts it, and ends it by ending srun; the agents of the others have no
part in it. The step shares CPUs, memory and GPUs with that of the agents.

Source: srun(1); Slurm's own start of TensorRT-LLM (its examples/disaggregated/slurm).
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence

from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import rank
from hpc_dynamo.launch.node import component, whoami
from hpc_dynamo.launch.slurm import ask, mpi_of_ranks
from hpc_dynamo.topology import Plan, Worker

KEPT = ("SLURM_JOB_ID", "SLURM_CONF")  # of the job's environment: all that srun needs of it
TASK = re.compile(r"srun: error: \S+: tasks? [\d,-]+: ")
REST_S = 10  # for the other ranks, once one has ended


def refuse_without_slurm(launcher: Launcher) -> None:
    """Raises ConfigError where no step can be started."""
    if launcher is Launcher.local:
        what = "cluster.launcher=local starts no MPI ranks over nodes"
        hint = "cluster.launcher=slurm, or workers that fit on this machine"
        raise ConfigError(what, hint=hint)


def step(config: Config, plan: Plan, worker: Worker, argv: Sequence[str]) -> tuple[str, ...]:
    """The command of the whole world, each rank of which is to run `argv`.

    To be run inside the job, with `environment`. Asks Slurm: not for an event loop.
    """
    hosts = whoami(plan.nodes)[1]
    nodes = [hosts[shard.node - plan.first_node] for shard in worker.shards]
    each = len(worker.shards[0].gpus)
    gpus = "/".join(",".join(map(str, shard.gpus)) for shard in worker.shards)
    group = component()  # srun looks for nodes in the first one where it is not told
    options = (
        *(() if group is None else (f"--het-group={group}",)),
        "--overlap",
        f"--mpi={mpi_of_ranks(config)}",
        f"--job-name={_name(worker)}",
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


def _name(worker: Worker) -> str:
    return f"worker-{worker.rank}"


def end(worker: Worker) -> None:
    """SIGKILL for what a srun that was killed itself has left of a step. Raises LaunchError."""
    shown = ask("squeue", "--noheader", "--steps", "--jobs", _job(), "--format", "%i %j")
    for step_id, name in (line.split(maxsplit=1) for line in shown.splitlines()):
        if name.strip() == _name(worker):
            ask("scancel", "--signal=KILL", step_id)


def _job() -> str:
    """That the worker's steps are of: each component of a heterogeneous job has its own."""
    group = component()
    return os.environ["SLURM_JOB_ID" if group is None else f"SLURM_JOB_ID_HET_GROUP_{group}"]


def last_words(log_tail: str) -> str:
    """The line that tells the most of how a step ended: which rank was killed, else what the last
    of them said."""
    lines = [line for line in log_tail.splitlines() if line.strip()]
    killed = [line for line in lines if TASK.match(line) and "Exited with" not in line]
    said = [line for line in lines if not line.startswith("srun: ")]
    return next(iter((killed or said or lines)[-1:]), "")


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """For `step`: what the ranks are told, and what srun needs to know of our job.

    The GPUs that a rank sees are its own node's business, see rank.py.
    """
    told = {name: value for name, value in env.items() if name != "CUDA_VISIBLE_DEVICES"}
    return told | {name: os.environ[name] for name in KEPT if name in os.environ}
