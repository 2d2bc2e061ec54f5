"""Resources of the nodes of a run: this machine, the enclosing allocation, or the partition."""

import os
from pathlib import Path

from hpc_dynamo import launch
from hpc_dynamo.config import Cluster, Config, Launcher
from hpc_dynamo.config.resolve import with_node_resources
from hpc_dynamo.launch import current_allocation, partitions
from hpc_dynamo.launch.layout_check import check_layout, fit_to_nodes
from hpc_dynamo.topology import Plan


def resolve_node_resources(config: Config, launcher: Launcher) -> Config:
    """Return the configuration with the known resources of nodes, if the user set none.

    They are the GPUs of this machine, or those of the smallest node of the enclosing allocation.
    The user sets the resources of nodes of several kinds.
    """
    if launcher is Launcher.local:
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        return with_node_resources(config, gpus)
    if launcher is not Launcher.allocation:
        return config
    found = current_allocation.require_allocation()
    if config.cluster.hardware:
        return config
    known = found.gpus or None, found.cpus or None, found.memory_gb or None
    return with_node_resources(config, *known)


def resolve_slurm_request(config: Config, layout: Plan, launcher: Launcher) -> Config:
    """Return the configuration with no more CPUs and memory than the partition's nodes have.

    Raises ConfigError if the layout can never run there, unless `--no-preflight` was given.
    """
    if launcher is not Launcher.slurm:
        return config
    nodes = partitions.query_partitions()
    if config.cluster.preflight:
        check_layout(config, layout, nodes)
    return fit_to_nodes(config, layout, nodes)


def planned_launcher(cluster: Cluster) -> Launcher:
    """Return the launcher that would start this run. A plan needs no allocation."""
    launcher = cluster.launcher
    if launcher is Launcher.allocation and "SLURM_JOB_ID" not in os.environ:
        return Launcher.slurm
    return launch.resolve_launcher(launcher)
