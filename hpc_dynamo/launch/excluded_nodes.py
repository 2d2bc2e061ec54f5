"""Nodes that the next job of a run does not use."""

from dataclasses import replace

from hpc_dynamo.config import Config


def without_nodes(config: Config, nodes: str) -> Config:
    """Return the configuration with more nodes in sbatch's option `exclude`."""
    slurm = config.cluster.slurm
    excluded = ",".join(filter(None, (slurm.extra.get("exclude", ""), nodes)))
    slurm = replace(slurm, extra=slurm.extra | {"exclude": excluded})
    return replace(config, cluster=replace(config.cluster, slurm=slurm))
