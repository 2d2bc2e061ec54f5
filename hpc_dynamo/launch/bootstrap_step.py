"""Slurm step in which agents exchange their addresses by MPI (bootstrap/mpi.py)."""

import importlib.util
import os
from collections.abc import Sequence

from hpc_dynamo.config import BootstrapMethod, Cluster
from hpc_dynamo.errors import MissingDependency
from hpc_dynamo.launch.mpi_step import step_environment
from hpc_dynamo.launch.slurm import rank_mpi
from hpc_dynamo.process.child import clean_environment

WAIT_S = 1  # limit for the other ranks after one has ended


def unavailable(cluster: Cluster) -> str:
    """Return why no MPI step can be started here; empty if it can. Calls Slurm and blocks."""
    if "SLURM_JOB_ID" not in os.environ:
        return "Slurm starts MPI ranks, and this process is in no Slurm job"
    if int(os.environ.get("SLURM_HET_SIZE", "1")) > 1:
        return "PMIx of Slurm fails in heterogeneous jobs"
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed in the environment of hpc-dynamo"
    try:
        found = rank_mpi(cluster) != "none"
    except MissingDependency as e:
        return e.message
    return "" if found else "srun has no PMIx (`srun --mpi=list`)"


def step_command(
    cluster: Cluster, hosts: Sequence[str], rank: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return srun's command and environment for a step with one MPI rank on each host."""
    options = (
        "--overlap",
        "--job-name=bootstrap",
        f"--mpi={rank_mpi(cluster)}",
        f"--nodelist={','.join(hosts)}",
        f"--nodes={len(hosts)}",
        f"--ntasks={len(hosts)}",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--distribution=block",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        f"--wait={WAIT_S}",
    )
    return ("srun", *options, *rank), step_environment(clean_environment({}))


def wants_mpi(cluster: Cluster, nodes: int) -> bool:
    """Return True if agents on `nodes` nodes should exchange addresses by MPI, if they can."""
    return nodes > 1 and cluster.bootstrap.method is not BootstrapMethod.tcp
