"""Workers that run as Slurm steps: an MPI world over the worker's nodes, or with Pyxis each engine
process on its node.

The agent of the first node starts an MPI world and ends it by ending srun. The agents of the other
nodes are not involved. A step shares CPUs, memory and GPUs with the step of the agents. srun turns
SIGTERM into SIGKILL for its tasks. It gets SIGTERM from the supervisor, or from the kernel if the
agent or the supervisor dies.

Source: srun(1); TensorRT-LLM's examples/disaggregated/slurm.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_dynamo.config import Config, ContainerKind, Engine, Launcher
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import mpi_rank
from hpc_dynamo.launch.environment import with_job_id
from hpc_dynamo.launch.node import het_component, node_index_and_hosts
from hpc_dynamo.launch.slurm import rank_mpi, slurm_command
from hpc_dynamo.topology import Plan, Shard, Worker

TASK = re.compile(r"srun: error: \S+: tasks? [\d,-]+: ")
KILL_WAIT_S = 10  # limit for the other ranks after one has ended


def check_launcher(launcher: Launcher, config: Config, *, mpi_steps: bool) -> None:
    """Raise ConfigError if workers must run as Slurm steps and the launcher has no Slurm.

    `worlds`: some worker is an MPI world over several nodes.
    """
    if launcher is not Launcher.local:
        return
    if any(own.engine.container.kind is ContainerKind.pyxis for own in config.by_model.values()):
        what = "cluster.launcher=local has no srun, which Pyxis needs to start containers"
        hint = "cluster.launcher=slurm, or engine.container.kind=apptainer or podman"
        raise ConfigError(what, hint=hint)
    if mpi_steps:
        what = "cluster.launcher=local cannot start MPI ranks over nodes"
        hint = "cluster.launcher=slurm, or workers that fit on this machine"
        raise ConfigError(what, hint=hint)


@dataclass(frozen=True)
class WorkerStep:
    """Step of a worker: its MPI world, or with `shard_index` only the process of that shard."""

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
        """Return srun's command for a step whose tasks each run `argv`.

        It runs inside the job, with `step_environment`. Calls Slurm and blocks: not for an event
        loop.
        """
        hosts = node_index_and_hosts(plan.nodes)[1]
        nodes = [hosts[shard.node - plan.first_node] for shard in self.shards]
        # Without the option srun looks for nodes only in the first component.
        group = het_component()
        where = () if group is None else (f"--het-group={group}",)
        mpi = rank_mpi(config.cluster) if self.shard_index is None else "none"
        return self.srun_argv(config.engine, argv, nodes, *where, f"--mpi={mpi}")

    def srun_argv(
        self, engine: Engine, argv: Sequence[str], nodes: Sequence[str], *job_options: str
    ) -> tuple[str, ...]:
        """Return srun's command for these nodes. `given` are options known only inside the job."""
        each = len(self.shards[0].gpus) if self.shard_index is None else 1
        gpus = "/".join(",".join(map(str, shard.gpus)) for shard in self.shards)
        python = engine.python or "python3" if self.container_args else sys.executable
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
        task = (python, "-I", "-S", mpi_rank.__file__, gpus, *argv)
        return ("srun", *job_options, *options, *self.container_args, *task)

    def signal(self, name: str) -> None:
        """Send a signal to all processes of the step, even if its srun is gone. Raises
        LaunchError."""
        shown = slurm_command(
            "squeue", "--noheader", "--steps", "--jobs", _slurm_job_id(), "--format", "%i %j"
        )
        steps = (line.split(maxsplit=1) for line in shown.splitlines())
        found = [step_id for step_id, title in steps if title.strip() == self.name]
        for step_id in found:
            slurm_command("scancel", f"--signal={name}", step_id)


def _slurm_job_id() -> str:
    """Return the job id of this node; components of a heterogeneous job have ids of their own."""
    group = het_component()
    return os.environ["SLURM_JOB_ID" if group is None else f"SLURM_JOB_ID_HET_GROUP_{group}"]


def last_message(log_tail: str) -> str:
    """Return the line of a log that best explains how a step ended: the rank that was killed, or
    else the last line of a rank."""
    lines = [line for line in log_tail.splitlines() if line.strip()]
    of_ranks = [line for line in lines if not line.startswith("srun: ")]
    return killed_rank(log_tail) or next(iter((of_ranks or lines)[-1:]), "")


def killed_rank(log_tail: str) -> str:
    """Return the last line by which srun reports a killed rank; empty if there is none."""
    lines = log_tail.splitlines()
    ends = [line for line in lines if TASK.match(line) and "Exited with" not in line]
    return next(iter(ends[-1:]), "")


def step_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for srun: variables of the tasks, and those by which srun finds the
    job.

    Each task selects its GPUs on its own node, see mpi_rank.py.
    """
    return with_job_id({n: value for n, value in env.items() if n != "CUDA_VISIBLE_DEVICES"})
