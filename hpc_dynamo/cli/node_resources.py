"""Resources of the nodes of a run: this machine, the enclosing allocation, or the partition."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hpc_dynamo import launch
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.launch import enclosing, partitions
from hpc_dynamo.launch.layout_check import check_layout, fit_to_nodes
from hpc_dynamo.topology import Plan

N = TypeVar("N", int, float)


def with_node_resources(config: Config, launcher: Launcher) -> Config:
    """Return the configuration with known resources of nodes where the user set none.

    They are the GPUs of this machine, or the resources of the enclosing allocation.
    """
    if launcher is Launcher.allocation:
        return _with_allocation(config)
    if launcher is not Launcher.local or config.cluster.gpus_per_node is not None:
        return config
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return replace(config, cluster=replace(config.cluster, gpus_per_node=gpus))


def _with_allocation(config: Config) -> Config:
    """Use the smallest node of the allocation. The user sets the resources of mixed nodes."""
    cluster, given = config.cluster, enclosing.require_allocation()
    if cluster.hardware:
        return config
    cluster = replace(
        cluster,
        gpus_per_node=_first(cluster.gpus_per_node, given.gpus),
        cpus_per_node=_first(cluster.cpus_per_node, given.cpus),
        memory_gb_per_node=_first(cluster.memory_gb_per_node, given.memory_gb),
    )
    return replace(config, cluster=cluster)


def _first(requested: N | None, known: N) -> N | None:
    """Return the user's value, else the known one, if any."""
    return requested if requested is not None else known or None


def with_partition_limits(config: Config, layout: Plan, launcher: Launcher) -> Config:
    """Return the configuration with no more CPUs and memory than the partition's nodes have.

    Raises ConfigError if the layout can never run there, unless `--no-preflight` was given.
    """
    if launcher is not Launcher.slurm:
        return config
    nodes = partitions.query_partitions()
    if config.cluster.preflight:
        check_layout(config, layout, nodes)
    return fit_to_nodes(config, layout, nodes)


def planned_launcher(config: Config) -> Launcher:
    """Return the launcher that would start this run. A plan needs no allocation."""
    launcher = config.cluster.launcher
    if launcher is Launcher.allocation and "SLURM_JOB_ID" not in os.environ:
        return Launcher.slurm
    return launch.resolve_launcher(launcher)
