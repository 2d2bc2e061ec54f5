"""Workers that are steps of Slurm's: an MPI world over the worker's nodes, or, where Pyxis starts
the containers, each engine process on its own node.

The agent of the first node starts a world, and ends it by ending srun; the agents of the others
have no part in it. A step shares CPUs, memory and GPUs with that of the agents. srun passes SIGTERM
on as SIGKILL, and gets it from the keeper, or the kernel, whenever the agent or that dies.

Source: srun(1); Slurm's own start of TensorRT-LLM (its examples/disaggregated/slurm).
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_dynamo.config import Config, ContainerKind, Launcher
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import mpi_rank as rank
from hpc_dynamo.launch.environment import with_job_id
from hpc_dynamo.launch.node import het_component, node_index_and_hosts
from hpc_dynamo.launch.slurm import rank_mpi, slurm_command
from hpc_dynamo.topology import Plan, Shard, Worker

TASK = re.compile(r"srun: error: \S+: tasks? [\d,-]+: ")
KILL_WAIT_S = 10  # for the other ranks, once one has ended


def check_launcher(launcher: Launcher, config: Config, *, worlds: bool) -> None:
    """Raises ConfigError where no step can be started, and one is needed."""
    if launcher is not Launcher.local:
        return
    if any(own.engine.container.kind is ContainerKind.pyxis for own in config.by_model.values()):
        what = "cluster.launcher=local has no srun, which Pyxis starts containers by"
        hint = "cluster.launcher=slurm, or engine.container.kind=apptainer or enroot"
        raise ConfigError(what, hint=hint)
    if worlds:
        what = "cluster.launcher=local starts no MPI ranks over nodes"
        hint = "cluster.launcher=slurm, or workers that fit on this machine"
        raise ConfigError(what, hint=hint)


@dataclass(frozen=True)
class WorkerStep:
    """Of a worker: its world, or, where `part` is given, one of its processes alone."""

    worker: Worker
    shard_index: int | None = None
    container_args: Sequence[str] = ()  # srun's options for a container

    @property
    def name(self) -> str:
        rank = f"worker-{self.worker.rank}"
        return rank if self.shard_index is None else f"{rank}-{self.shard_index}"

    @property
    def shards(self) -> tuple[Shard, ...]:
        shards = self.worker.shards
        return shards if self.shard_index is None else (shards[self.shard_index],)

    def command(self, config: Config, plan: Plan, argv: Sequence[str]) -> tuple[str, ...]:
        """What starts it; each of its tasks is to run `argv`.

        To be run inside the job, with `environment`. Asks Slurm: not for an event loop.
        """
        hosts = node_index_and_hosts(plan.nodes)[1]
        nodes = [hosts[shard.node - plan.first_node] for shard in self.shards]
        group = het_component()  # srun looks for nodes in the first one where it is not told
        where = () if group is None else (f"--het-group={group}",)
        mpi = rank_mpi(config) if self.shard_index is None else "none"
        return self.srun_argv(config, argv, nodes, *where, f"--mpi={mpi}")

    def srun_argv(
        self, config: Config, argv: Sequence[str], nodes: Sequence[str], *given: str
    ) -> tuple[str, ...]:
        """`command` with these nodes, and options that only the job knows."""
        each = len(self.shards[0].gpus) if self.shard_index is None else 1
        gpus = "/".join(",".join(map(str, shard.gpus)) for shard in self.shards)
        python = config.engine.python or "python3" if self.container_args else sys.executable
        options = (
            "--overlap",
            f"--job-name={self.name}",
            f"--nodelist={','.join(nodes)}",
            f"--nodes={len(nodes)}",
            f"--ntasks={each * len(nodes)}",
            f"--ntasks-per-node={each}",
            "--distribution=block",
            "--cpu-bind=none",
            "--kill-on-bad-exit=1",
            f"--wait={KILL_WAIT_S}",
            *(("--label",) if self.shard_index is None else ()),
        )
        task = (python, "-I", "-S", rank.__file__, gpus, *argv)
        return ("srun", *given, *options, *self.container_args, *task)

    def signal(self, name: str) -> None:
        """For all of its processes, if it is there, with or without srun. Raises LaunchError."""
        shown = slurm_command(
            "squeue", "--noheader", "--steps", "--jobs", _slurm_job_id(), "--format", "%i %j"
        )
        steps = (line.split(maxsplit=1) for line in shown.splitlines())
        found = [step_id for step_id, title in steps if title.strip() == self.name]
        for step_id in found:
            slurm_command("scancel", f"--signal={name}", step_id)


def _slurm_job_id() -> str:
    """That the worker's steps are of: each component of a heterogeneous job has its own."""
    group = het_component()
    return os.environ["SLURM_JOB_ID" if group is None else f"SLURM_JOB_ID_HET_GROUP_{group}"]


def last_message(log_tail: str) -> str:
    """The line that tells the most of how a step ended: which rank was killed, else what the last
    of them said."""
    lines = [line for line in log_tail.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("srun: ")]
    return killed_rank(log_tail) or next(iter((said or lines)[-1:]), "")


def killed_rank(log_tail: str) -> str:
    """Return the last line by which srun reports a killed rank; empty if there is none."""
    lines = log_tail.splitlines()
    ends = [line for line in lines if TASK.match(line) and "Exited with" not in line]
    return next(iter(ends[-1:]), "")


def step_environment(env: Mapping[str, str]) -> dict[str, str]:
    """For a step: what its tasks are told, and what srun needs to know of our job.

    The GPUs that a task sees are its own node's business, see rank.py.
    """
    told = {name: value for name, value in env.items() if name != "CUDA_VISIBLE_DEVICES"}
    return with_job_id(told)
