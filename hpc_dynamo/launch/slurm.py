"""Slurm jobs: submission through submitit, state through squeue.

sacct is not used: some sites have no accounting database, and submitit would warn at every poll.
squeue and scontrol report all that a live run needs.
"""

import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path

import submitit

from hpc_dynamo.config import Cluster, Config
from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch.environment import applied, for_commands, for_submission
from hpc_dynamo.launch.job import JobState
from hpc_dynamo.launch.reasons import explain_end, explain_pending
from hpc_dynamo.launch.refusal import submission_error
from hpc_dynamo.launch.resources import sbatch_options
from hpc_dynamo.launch.sbatch_script import submission_script
from hpc_dynamo.messages import JobRecord, Outcome
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

ANSWER_S = 30.0  # limit of a Slurm command; a loaded slurmctld is slow
FORMAT = "%T|%r|%S|%N"  # state, reason, (expected) start, nodes
PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")


def slurm_command(*argv: str) -> str:
    """Return the output of a Slurm command. Raises LaunchError with the command's error."""
    return run_command(argv, for_commands())


def run_command(argv: Sequence[str], env: Mapping[str, str], deadline_s: float = ANSWER_S) -> str:
    """Return the output of a Slurm command that runs in `env`. Raises LaunchError."""
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=deadline_s, check=True
        )
    except FileNotFoundError as e:
        hint = "run this on a login node, or cluster=local"
        raise MissingDependency(f"{argv[0]} is not on PATH", hint=hint) from e
    except subprocess.TimeoutExpired as e:
        hint = "`scontrol ping` shows if the controller responds"
        raise LaunchError(f"{argv[0]} did not answer in {deadline_s:.0f} s", hint=hint) from e
    except subprocess.CalledProcessError as e:
        raise LaunchError(f"{' '.join(argv)}: {e.stderr.strip()}") from e
    return done.stdout


def available() -> bool:
    """Return True if jobs can be submitted now."""
    if not (shutil.which("sbatch") and shutil.which("srun")):
        return False
    try:
        return "UP" in slurm_command("scontrol", "ping")
    except LaunchError:
        return False


def rank_mpi(cluster: Cluster) -> str:
    """Return srun's --mpi for MPI ranks: pmix if this srun has it, else none."""
    if cluster.slurm.mpi != "auto":
        return cluster.slurm.mpi
    listed = subprocess.run(
        ["srun", "--mpi=list"],
        env=for_commands(),
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
        check=False,
    )  # some versions answer on stderr
    found = re.search(r"\bpmix\b", listed.stdout + listed.stderr)
    return "pmix" if found else "none"


def starts_hetjobs() -> bool:
    """Return True if this Slurm starts heterogeneous jobs: only the backfill scheduler does."""
    return "sched/backfill" in slurm_command("scontrol", "show", "config")


def submit(attempt: Attempt, config: Config, plan: Plan, entry: Callable[[str], int]) -> JobRecord:
    """Submit one allocation of identical nodes with one task for each node, which runs
    `entry(attempt)`. Raises LaunchError."""
    executor = ScriptExecutor(attempt.submitit, submission_script(attempt, config, plan))
    executor.update_parameters(nodes=plan.nodes)  # submitit records the number of tasks
    env, printed = for_submission(sbatch_options(config, plan)), io.StringIO()
    try:
        # submitit would print sbatch's error a second time.
        with applied(env), redirect_stderr(printed):
            job = executor.submit(entry, str(attempt.path))
    except submitit.core.utils.FailedJobError as e:
        raise submission_error(str(e)) from e
    return JobRecord(launcher="slurm", job_id=job.job_id, submitted_at=time.time())


class ScriptExecutor(submitit.SlurmExecutor):
    """submitit's executor that submits a given sbatch script."""

    def __init__(self, folder: Path, text: str) -> None:
        super().__init__(folder)
        self._text = text

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._text


class SlurmJob:
    """Job submitted to Slurm, with the jobs of its other node groups. Implements LaunchedJob."""

    requeuable = True

    def __init__(self, record: JobRecord) -> None:
        self.id, self._other_ids = record.job_id, record.hetero_job_ids

    def state(self) -> tuple[JobState, str]:
        """Return the state from squeue. For a job that left the queue, scontrol may know the
        end."""
        try:
            out = slurm_command(
                "squeue", "--noheader", "--sort=i", "--jobs", self.id, "--format", FORMAT
            )
        except LaunchError as e:
            if "Invalid job id" in e.message:
                return JobState.ended, "Slurm no longer knows it"
            return JobState.unknown, e.message
        if not out.strip():
            return JobState.ended, self._explain_end()
        # Components of a heterogeneous job, the head's first.
        components = [line.split("|") for line in out.splitlines()]
        state, reason, start, _ = components[0]
        if state in PENDING:
            return JobState.pending, explain_pending(state, reason, self.id, start)
        if state in ("RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "RESIZING"):
            return JobState.running, ",".join(nodes for *_, nodes in components if nodes)
        return JobState.ended, state.lower()

    def _explain_end(self) -> str:
        """Describe the end: scontrol shows a job for some minutes (MinJobAge) after it left the
        queue."""
        try:
            shown = slurm_command("scontrol", "show", "job", self.id)
        except LaunchError:
            return "left the queue"
        return explain_end(_fields(shown))

    def continues_after(self, outcome: Outcome) -> bool:
        """Return True if Slurm has requeued the job: it is pending, or runs again."""
        if self.id not in _queued_jobs():
            return False
        state, _ = self.state()
        if state is JobState.running:
            shown = slurm_command("scontrol", "show", "job", self.id)
            return int(_fields(shown).get("Restarts", "0")) > outcome.restart_count
        return state is JobState.pending

    def stop(self) -> None:
        """Signal the tasks of the job if it runs, else cancel it.

        A job that ends by itself reports its exit code to Slurm. Jobs of other node groups are
        stopped by their head if they run.
        """
        if self.state()[0] is JobState.running:
            slurm_command("scancel", "--signal=TERM", self.id)
        else:
            slurm_command("scancel", self.id)
        self._cancel_pending_groups()

    def cancel(self) -> None:
        """Cancel the job. Slurm kills tasks that do not end in time."""
        slurm_command("scancel", self.id)
        self._cancel_pending_groups()

    def _cancel_pending_groups(self) -> None:
        if self._other_ids:
            with suppress(LaunchError):  # Slurm no longer knows them
                slurm_command("scancel", "--state=PENDING", *self._other_ids)


@cache
def _queued_jobs() -> frozenset[str]:
    """Return the jobs of this user that Slurm has not ended.

    It is read once: a job that has left the queue does not return to it. Raises LaunchError.
    """
    user = str(os.getuid())
    return frozenset(
        slurm_command("squeue", "--noheader", "--user", user, "--format", "%A").split()
    )


def _fields(shown: str) -> dict[str, str]:
    """Return the fields that scontrol shows, the first of each name."""
    pairs = (word.partition("=") for word in shown.split())
    return {name: value for name, _, value in reversed([*pairs])}
