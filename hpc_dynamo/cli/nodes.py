"""What the nodes of a run have: this machine, the allocation around us, or Slurm's partition."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hpc_dynamo import launch
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.launch import enclosing, partitions
from hpc_dynamo.launch.layout_check import fitted, refuse_impossible
from hpc_dynamo.topology import Plan

N = TypeVar("N", int, float)


def counted(config: Config, launcher: Launcher) -> Config:
    """Fill in what nodes have, if it is not set and known: this machine's GPUs, or what the
    allocation around us gives."""
    if launcher is Launcher.allocation:
        return _of_allocation(config)
    if launcher is not Launcher.local or config.cluster.gpus_per_node is not None:
        return config
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return replace(config, cluster=replace(config.cluster, gpus_per_node=gpus))


def _of_allocation(config: Config) -> Config:
    """Its smallest node counts. Nodes of several kinds are described by the user."""
    cluster, given = config.cluster, enclosing.required()
    if cluster.hardware:
        return config
    cluster = replace(
        cluster,
        gpus_per_node=_first(cluster.gpus_per_node, given.gpus),
        cpus_per_node=_first(cluster.cpus_per_node, given.cpus),
        memory_gb_per_node=_first(cluster.memory_gb_per_node, given.memory_gb),
    )
    return replace(config, cluster=cluster)


def _first(said: N | None, known: N) -> N | None:
    """What the user has said, else what is known, if anything is."""
    return said if said is not None else known or None


def asked_of_slurm(config: Config, layout: Plan, launcher: Launcher) -> Config:
    """Return the configuration with no more CPUs and memory than the partition's nodes have.

    Raises ConfigError if the layout can never run there, unless `--no-preflight` is given.
    """
    if launcher is not Launcher.slurm:
        return config
    nodes = partitions.known()
    if config.cluster.preflight:
        refuse_impossible(config, layout, nodes)
    return fitted(config, layout, nodes)


def planned_for(config: Config) -> Launcher:
    """Return who would start this run. A plan needs no allocation to be there."""
    launcher = config.cluster.launcher
    if launcher is Launcher.allocation and "SLURM_JOB_ID" not in os.environ:
        return Launcher.slurm
    return launch.resolve(launcher)
