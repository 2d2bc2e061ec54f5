"""Agents as a step in an existing allocation, of one kind of nodes or heterogeneous."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from hpc_dynamo.config import Config
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch.environment import for_step
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.node import restart_count
from hpc_dynamo.launch.resources import group_configs, required_resources, sbatch_options
from hpc_dynamo.launch.slurm import SlurmJob, slurm_command
from hpc_dynamo.launch.srun import GroupPlans, srun_command
from hpc_dynamo.messages import JobRecord, Outcome
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

log = logging.getLogger(__name__)


def start_step(attempt: Attempt, config: Config, plan: Plan, entry: str) -> "StepJob":
    """Start the agents as a step of the enclosing allocation.

    `entry` is a module that takes the attempt's path. The step may share nodes with the user's
    shell (--overlap). Slurm's signal before the end of the walltime reaches this process and is
    forwarded. Raises LaunchError if the allocation is too small.
    """
    groups = _limited_groups(group_configs(config, plan))
    python = (sys.executable, "-u", "-m", entry, str(attempt.path))
    argv = srun_command(groups, python, "--overlap")
    env = for_step()
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGUSR2, lambda number, _: process.send_signal(number))
    job_id = os.environ["SLURM_JOB_ID"]
    record = JobRecord(
        launcher="allocation",
        job_id=job_id,
        submitted_at=time.time(),
        restart_count=restart_count(),
    )
    return StepJob(record, attempt, process)


def _limited_groups(groups: GroupPlans) -> GroupPlans:
    """Limit the requests to what each component of the allocation has. Raises LaunchError."""
    if len(groups) == 1:
        return [_limited_to_allocation(*groups[0], "")]
    if int(os.environ.get("SLURM_HET_SIZE", "1")) < len(groups):
        what = f"the topology has {len(groups)} node groups, but this allocation has fewer"
        options = _salloc_options(groups)
        raise LaunchError(what, hint=f"salloc {options}, or the same command on a login node")
    return [_limited_to_allocation(*g, f"_HET_GROUP_{i}") for i, g in enumerate(groups)]


def _salloc_options(groups: GroupPlans) -> str:
    """Return salloc's options for a heterogeneous allocation."""
    names = ("nodes", "partition", "constraint")
    options = (sbatch_options(config, plan) for config, plan in groups)
    return " : ".join(" ".join(f"--{n}={o[n]}" for n in names if n in o) for o in options)


def _limited_to_allocation(config: Config, plan: Plan, component: str) -> tuple[Config, Plan]:
    """Limit the request to the CPUs of the smallest node. An interactive allocation often has fewer
    CPUs than the workers request; they then share them. Raises LaunchError."""
    nodes = int(os.environ.get(f"SLURM_JOB_NUM_NODES{component}", "1"))
    kind = f" of kind {plan.hardware or 'own'}" if component else ""
    if nodes < plan.nodes:
        what = f"this allocation has {nodes} nodes{kind}, the topology needs {plan.nodes}"
        hint = f"cluster.launcher=slurm for a job of its own, salloc --nodes={plan.nodes}, or a "
        hint += "smaller topology"
        raise LaunchError(what, hint=hint)
    counts_text = os.environ.get(f"SLURM_JOB_CPUS_PER_NODE{component}", "")  # such as 16(x2),8
    counts = [int(part.partition("(")[0]) for part in counts_text.split(",") if part]
    requested = required_resources(config, plan).cpus
    if not counts or min(counts) >= requested:
        return config, plan
    log.warning("a node%s has %d CPUs, but its workers request %d", kind, min(counts), requested)
    return replace(config, cluster=replace(config.cluster, cpus_per_node=min(counts))), plan


class StepJob:
    """Agents as a step of an allocation, which continues after them. Implements LaunchedJob."""

    requeuable = False

    def __init__(
        self, record: JobRecord, attempt: Attempt, process: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self.record, self._attempt, self._process = record, attempt, process

    def _step(self) -> str | None:
        step = next((node.slurm_step_id for node in self._attempt.nodes()), None)
        return f"{self.record.job_id}.{step}" if step else None

    def state(self) -> tuple[JobState, str]:
        """Return the state from srun if this process started it, else from squeue."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return JobState.running, f"in allocation {self.record.job_id}"
            return JobState.ended, f"srun exited with code {code}"
        # The ids of its steps are used again after a restart of the allocation.
        own_job = self.record.job_id == os.environ.get("SLURM_JOB_ID")
        if own_job and self.record.restart_count != restart_count():
            return JobState.ended, "Slurm has restarted the allocation"
        step = self._step()
        if step is None:
            return SlurmJob(self.record).state()
        try:
            alive = slurm_command("squeue", "--noheader", "--steps", step, "--format", "%N").strip()
        except LaunchError as e:
            return JobState.unknown, e.message
        return (JobState.running, alive) if alive else (JobState.ended, f"step {step} has ended")

    def continues_after(self, outcome: Outcome) -> bool:
        """Return False: in a restarted allocation the command starts another attempt."""
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        elif step := self._step():
            slurm_command("scancel", "--signal=TERM", step)

    def cancel(self) -> None:
        if step := self._step():
            slurm_command("scancel", step)
