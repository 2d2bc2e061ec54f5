"""Allocation that this process was started in, as Slurm's controller describes it."""

import os
import re
from dataclasses import dataclass

from hpc_dynamo.errors import ConfigError, LaunchError, MissingDependency
from hpc_dynamo.launch.slurm import slurm_command

LIVE = ("RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED")
UNKNOWN_JOB = "Invalid job id"
# `scontrol --details show job`: "Nodes=n[1-2] CPU_IDs=0-3,8 Mem=1000 GRES=gpu:a100:4(IDX:0-3)"
NODES = re.compile(r"\bNodes=\S+ CPU_IDs=(?P<cpus>\S+) Mem=(?P<memory>\d+) GRES=(?P<gres>.*)")
GPUS = re.compile(r"\bgpu(?::[^:,(]+)?:(\d+)")


@dataclass(frozen=True)
class Allocation:
    """Resources of the smallest node of an allocation; 0 if Slurm does not report them."""

    cpus: int = 0
    memory_gb: float = 0.0
    gpus: int = 0


def current_allocation() -> Allocation | None:
    """Return the allocation that SLURM_JOB_ID names; None if there is none, it has ended, or Slurm
    does not answer."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    try:
        return _query(os.environ["SLURM_JOB_ID"])
    except ConfigError:
        return None


def require_allocation() -> Allocation:
    """Return the allocation that SLURM_JOB_ID names.

    Raises ConfigError if the name is stale: a terminal multiplexer or an editor outlives the job
    that it was started in, and a shell may come from another cluster.
    """
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        what = "cluster.launcher=allocation needs an allocation, and SLURM_JOB_ID is not set"
        raise ConfigError(what, hint="salloc --nodes=2, or cluster.launcher=slurm")
    # A slow controller is no reason to refuse: srun asks it again.
    return _query(job_id) or Allocation()


def _query(job_id: str) -> Allocation | None:
    """Return this user's running job with this number, as Slurm shows it; None if Slurm does not
    answer. Raises ConfigError if there is no such job."""
    try:
        shown = slurm_command("scontrol", "--details", "show", "job", job_id)
    except MissingDependency as e:
        what = f"SLURM_JOB_ID={job_id} is set, but {e.message}"
        raise ConfigError(what, hint="unset SLURM_JOB_ID, or cluster.launcher=local") from e
    except LaunchError as e:
        if UNKNOWN_JOB in e.message:
            raise _stale(job_id, "Slurm does not know this job") from e
        return None
    if reason := _why_unusable(shown):
        raise _stale(job_id, reason)
    return parse_allocation(shown)


def _why_unusable(shown: str) -> str:
    """Return why the job is not a running job of this user; empty if it is."""
    state, owner = re.search(r"JobState=(\w+)", shown), re.search(r"UserId=(\S+)\((\d+)\)", shown)
    if owner and int(owner[2]) != os.getuid():
        return f"this job is of user {owner[1]}"
    return f"this job is {state[1]}" if state and state[1] not in LIVE else ""


def _stale(job_id: str, reason: str) -> ConfigError:
    what = f"SLURM_JOB_ID={job_id} names no running job of yours on this cluster: {reason}"
    hint = "`unset SLURM_JOB_ID`, or the same command with cluster.launcher=slurm"
    return ConfigError(what, hint=hint)


def parse_allocation(shown: str) -> Allocation:
    """Parse `scontrol --details show job`. Nodes of a heterogeneous job are not compared."""
    if shown.count("JobId=") > 1:
        return Allocation()
    nodes = list(NODES.finditer(shown))
    return Allocation(
        cpus=min((_count(node["cpus"]) for node in nodes), default=0),
        memory_gb=min((int(node["memory"]) / 1024 for node in nodes), default=0.0),
        gpus=min((sum(map(int, GPUS.findall(node["gres"]))) for node in nodes), default=0),
    )


def _count(ranges: str) -> int:
    """Return the number of CPUs in ranges such as `0-3,8`."""
    ends = (part.partition("-") for part in ranges.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
