"""Steps in an allocation that somebody else asked for, of one kind of nodes or heterogeneous."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from hpc_dynamo.config import Config
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch import srun as step
from hpc_dynamo.launch.environment import for_step
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.resources import group_configs, required_resources, sbatch_options
from hpc_dynamo.launch.slurm import SlurmJob, agent_mpi, slurm_command
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

log = logging.getLogger(__name__)

GroupPlans = Sequence[tuple[Config, Plan]]


def start_step(attempt: Attempt, config: Config, plan: Plan, entry: str) -> "StepJob":
    """Start the agents as a step of the allocation that we are in.

    `entry` is a module that takes the attempt's path. The step may share the nodes with the
    shell that we were started from, hence --overlap. Slurm announces the end of the walltime
    to us; it is passed on. Raises LaunchError where the allocation is too small.
    """
    parts = _checked_groups(group_configs(config, plan))
    python = (sys.executable, "-u", "-m", entry, str(attempt.path))
    argv = step.srun_command(parts, python, agent_mpi(config), "--overlap")
    env = for_step()
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGUSR2, lambda number, _: process.send_signal(number))
    job_id = os.environ["SLURM_JOB_ID"]
    record = JobRecord(launcher="allocation", job_id=job_id, submitted_at=time.time())
    return StepJob(record, attempt, process)


def _checked_groups(parts: GroupPlans) -> GroupPlans:
    """Asking for no more than each component of the allocation has. Raises LaunchError."""
    if len(parts) == 1:
        return [_limited_to_allocation(*parts[0], "")]
    if int(os.environ.get("SLURM_HET_SIZE", "1")) < len(parts):
        what = f"the topology has nodes of {len(parts)} kinds, this allocation has not"
        raise LaunchError(
            what, hint=f"salloc {_salloc_options(parts)}, or the same on a login node"
        )
    return [
        _limited_to_allocation(*each, f"_HET_GROUP_{index}") for index, each in enumerate(parts)
    ]


def _salloc_options(parts: GroupPlans) -> str:
    """Options of salloc for a heterogeneous allocation."""
    wanted = ("nodes", "partition", "constraint")
    options = (sbatch_options(config, plan) for config, plan in parts)
    return " : ".join(" ".join(f"--{n}={o[n]}" for n in wanted if n in o) for o in options)


def _limited_to_allocation(config: Config, plan: Plan, component: str) -> tuple[Config, Plan]:
    """Asking for no more CPUs than its smallest node has: an interactive allocation often has
    fewer than the workers would like, and they may share. Raises LaunchError."""
    nodes = int(os.environ.get(f"SLURM_JOB_NUM_NODES{component}", "1"))
    kind = f" of kind {plan.hardware or 'own'}" if component else ""
    if nodes < plan.nodes:
        what = f"this allocation has {nodes} nodes{kind}, the topology needs {plan.nodes}"
        hint = f"cluster.launcher=slurm for a job of its own, salloc --nodes={plan.nodes}, or a "
        hint += "smaller topology"
        raise LaunchError(what, hint=hint)
    given = os.environ.get(f"SLURM_JOB_CPUS_PER_NODE{component}", "")  # such as 16(x2),8
    counts = [int(part.partition("(")[0]) for part in given.split(",") if part]
    wanted = required_resources(config, plan).cpus
    if not counts or min(counts) >= wanted:
        return config, plan
    log.warning("a node%s has %d CPUs here, its workers would like %d", kind, min(counts), wanted)
    return replace(config, cluster=replace(config.cluster, cpus_per_node=min(counts))), plan


class StepJob:
    """Our agents inside somebody's allocation, which must outlive them. See launch.job.Job."""

    def __init__(
        self, record: JobRecord, attempt: Attempt, process: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self.record, self._attempt, self._process = record, attempt, process

    def _step(self) -> str | None:
        step = next((node.slurm_step_id for node in self._attempt.nodes()), None)
        return f"{self.record.job_id}.{step}" if step else None

    def state(self) -> tuple[JobState, str]:
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return JobState.running, f"in allocation {self.record.job_id}"
            return JobState.ended, f"srun exited with code {code}"
        step = self._step()
        if step is None:
            return SlurmJob(self.record).state()
        try:
            alive = slurm_command("squeue", "--noheader", "--steps", step, "--format", "%N").strip()
        except LaunchError as e:
            return JobState.unknown, e.message
        return (JobState.running, alive) if alive else (JobState.ended, f"step {step} has ended")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        elif step := self._step():
            slurm_command("scancel", "--signal=TERM", step)
