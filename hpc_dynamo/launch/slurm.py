"""Jobs and steps of Slurm: submission through submitit, state through squeue.

sacct is never asked: sites without an accounting database exist, and submitit would warn at
every poll. squeue and scontrol know all that a live run needs.
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import submitit

from hpc_dynamo.config import BootstrapMethod, Config
from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.resources import resources, sbatch_options, srun_options
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

ANSWER_S = 30.0  # a loaded slurmctld takes its time

log = logging.getLogger(__name__)


def ask(*argv: str) -> str:
    """Output of one of Slurm's commands. Raises LaunchError with what it said."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ANSWER_S, check=True)
    except FileNotFoundError as e:
        hint = "run this on a login node, or cluster=local"
        raise MissingDependency(f"{argv[0]} is not on PATH", hint=hint) from e
    except subprocess.TimeoutExpired as e:
        hint = "`scontrol ping` shows whether the controller lives"
        raise LaunchError(f"{argv[0]} did not answer in {ANSWER_S:.0f} s", hint=hint) from e
    except subprocess.CalledProcessError as e:
        raise LaunchError(f"{' '.join(argv)}: {e.stderr.strip()}") from e
    return done.stdout


def available() -> bool:
    """True where jobs can be submitted now."""
    if not (shutil.which("sbatch") and shutil.which("srun")):
        return False
    try:
        return "UP" in ask("scontrol", "ping")
    except LaunchError:
        return False


def mpi_type(config: Config) -> str:
    """What srun's --mpi gets: none where nobody wants MPI, else pmix where this srun has it."""
    if config.cluster.slurm.mpi != "auto":
        return config.cluster.slurm.mpi
    if config.cluster.bootstrap.method is not BootstrapMethod.mpi:
        return "none"
    listed = subprocess.run(
        ["srun", "--mpi=list"], capture_output=True, text=True, timeout=ANSWER_S, check=False
    )  # some versions answer on stderr
    found = re.search(r"\bpmix\b", listed.stdout + listed.stderr)
    return "pmix" if found else "none"


def submit(attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]) -> JobRecord:
    """One allocation, one task a node, each running `entry(attempt)`. Raises LaunchError."""
    executor = submitit.AutoExecutor(folder=attempt.submitit, cluster="slurm")
    options = sbatch_options(config, plan)
    executor.update_parameters(
        name=str(options.pop("job-name")),
        slurm_ntasks_per_node=options.pop("ntasks-per-node"),
        slurm_time=options.pop("time"),
        slurm_srun_args=srun_options(config, plan, mpi_type(config)),
        slurm_setup=list(config.cluster.slurm.setup) or None,
        slurm_signal_delay_s=config.cluster.slurm.signal_before_end_s,
        slurm_additional_parameters=options,
        slurm_nodes=plan.nodes,  # submitit counts the tasks that it will await by these
    )
    try:
        job = executor.submit(entry, str(attempt.path))
    except submitit.core.utils.FailedJobError as e:
        said = str(e).strip().splitlines()
        hint = "cluster.slurm.partition, .account, .qos or .time; `sinfo` lists partitions"
        raise LaunchError(f"sbatch refused the job: {said[-1]}", hint=hint) from e
    return JobRecord(launcher="slurm", job_id=job.job_id, submitted_at=time.time())


class SlurmJob:
    """See launch.job.Job."""

    def __init__(self, record: JobRecord) -> None:
        self.id = record.job_id

    def state(self) -> tuple[JobState, str]:
        try:
            out = ask("squeue", "--noheader", "--jobs", self.id, "--format", "%T|%r|%N").strip()
        except LaunchError as e:
            if "Invalid job id" in e.message:
                return JobState.ended, "Slurm has forgotten it"
            return JobState.unknown, e.message
        if not out:
            return JobState.ended, self._how_it_ended()
        state, reason, nodes = out.splitlines()[0].split("|")
        if state in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
            return JobState.pending, f"Slurm says {state.lower()}, reason: {reason}"
        if state in ("RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "RESIZING"):
            return JobState.running, nodes
        return JobState.ended, state.lower()

    def _how_it_ended(self) -> str:
        """scontrol remembers a job for some minutes (MinJobAge) after it has left the queue."""
        try:
            shown = ask("scontrol", "show", "job", self.id)
        except LaunchError:
            return "left the queue"
        wanted = ("JobState", "Reason", "ExitCode", "RunTime")
        return ", ".join(w for w in shown.split() if w.split("=")[0] in wanted)

    def stop(self) -> None:
        ask("scancel", self.id)


def start_step(attempt: Attempt, config: Config, plan: Plan, entry: str) -> "StepJob":
    """Start the agents as a step of the allocation that we are in.

    `entry` is a module that takes the attempt's path. The step may share the nodes with the
    shell that we were started from, hence --overlap. Slurm announces the end of the walltime
    to us; it is passed on. Raises LaunchError where the allocation is too small.
    """
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes < plan.nodes:
        what = f"this allocation has {nodes} nodes, the topology needs {plan.nodes}"
        raise LaunchError(what, hint=f"salloc --nodes={plan.nodes}, or a smaller topology")
    step = (f"--nodes={plan.nodes}", f"--ntasks={plan.nodes}", "--ntasks-per-node=1", "--overlap")
    python = (sys.executable, "-u", "-m", entry, str(attempt.path))
    options = srun_options(_within(config, plan), plan, mpi_type(config))
    argv = ("srun", *step, *options, *python)
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGUSR2, lambda number, _: process.send_signal(number))
    job_id = os.environ["SLURM_JOB_ID"]
    record = JobRecord(launcher="allocation", job_id=job_id, submitted_at=time.time())
    return StepJob(record, attempt, process)


def _within(config: Config, plan: Plan) -> Config:
    """Asking for no more CPUs than the allocation has on its smallest node: an interactive one
    often has fewer than the workers would like, and they may share."""
    given = os.environ.get("SLURM_JOB_CPUS_PER_NODE", "")  # such as 16(x2),8
    counts = [int(part.partition("(")[0]) for part in given.split(",") if part]
    wanted = resources(config, plan).cpus
    if not counts or min(counts) >= wanted:
        return config
    log.warning("a node has %d CPUs here, its workers would like %d", min(counts), wanted)
    return replace(config, cluster=replace(config.cluster, cpus_per_node=min(counts)))


class StepJob:
    """Our agents inside somebody's allocation, which must outlive them. See launch.job.Job."""

    def __init__(
        self, record: JobRecord, attempt: Attempt, process: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self.record, self._attempt, self._process = record, attempt, process

    def _step(self) -> str | None:
        step = next((node.step for node in self._attempt.nodes()), None)
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
            alive = ask("squeue", "--noheader", "--steps", step, "--format", "%N").strip()
        except LaunchError as e:
            return JobState.unknown, e.message
        return (JobState.running, alive) if alive else (JobState.ended, f"step {step} has ended")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        elif step := self._step():
            ask("scancel", "--signal=TERM", step)
