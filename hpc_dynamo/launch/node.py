"""Node, component and end of the job of this process, from Slurm or submitit's local executor."""

import os
import socket
from datetime import datetime

from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch.slurm import slurm_command


def node_index_and_hosts(count: int) -> tuple[int, list[str]]:
    """Return the index of this node, and the host names of all `count` nodes in order."""
    if "SUBMITIT_LOCAL_GLOBALID" in os.environ:
        return int(os.environ["SUBMITIT_LOCAL_GLOBALID"]), [socket.gethostname()] * count
    if "SLURM_NODEID" in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
        return int(os.environ["SLURM_NODEID"]), _index_order(expand_hosts(nodes))
    raise LaunchError("an agent was started outside a job", hint="start it by `hpc-dynamo batch …`")


def expand_hosts(nodes: str) -> list[str]:
    """Return the host names in a node list of Slurm, such as n[1-3]."""
    return slurm_command("scontrol", "show", "hostnames", nodes).split()


def _index_order(hosts: list[str]) -> list[str]:
    """Return hosts in the order of their indexes. In a heterogeneous job they are counted component
    by component, while the node list of a step is sorted by name."""
    components = int(os.environ.get("SLURM_HET_SIZE", "0"))
    lists = (os.environ.get(f"SLURM_JOB_NODELIST_HET_GROUP_{i}") for i in range(components))
    known = expand_hosts(",".join(filter(None, lists))) if components else []
    return [host for host in known if host in hosts] or hosts


def het_component() -> int | None:
    """Return the index of this node's component in a heterogeneous job; None in any other job."""
    count = int(os.environ.get("SLURM_HET_SIZE", "0"))
    name = os.environ.get("SLURMD_NODENAME", "")
    lists = (os.environ.get(f"SLURM_JOB_NODELIST_HET_GROUP_{index}", "") for index in range(count))
    return next((i for i, nodes in enumerate(lists) if nodes and name in expand_hosts(nodes)), None)


def restart_count() -> int:
    """Return how often Slurm has restarted the job of this process."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def is_requeued() -> bool:
    """Return True if Slurm has restarted the job of this process."""
    return restart_count() > 0


def allocation_end() -> float | None:
    """Return the time at which Slurm will end this job, in seconds since the epoch; None if
    unknown.

    Slurm before 23.02 does not set SLURM_JOB_END_TIME. scontrol shows it in all versions, for each
    component of a heterogeneous job.
    """
    if "SLURM_JOB_END_TIME" in os.environ:
        return float(os.environ["SLURM_JOB_END_TIME"])
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    try:
        shown = slurm_command("scontrol", "show", "job", job)
    except (LaunchError, MissingDependency):
        return None
    fields = [word.split("=", 1) for word in shown.split() if "=" in word]
    ends = [end for name, end in fields if name == "EndTime" and end not in ("Unknown", "N/A")]
    return min((datetime.fromisoformat(end).timestamp() for end in ends), default=None)
