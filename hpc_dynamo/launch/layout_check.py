"""Checks of a layout against its partition, and amounts to ask for on each node. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpc_dynamo.config import Cluster, Config, with_hardware
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch.gpu_requests import check_gpu_requests
from hpc_dynamo.launch.partitions import PartitionNodes, eligible_nodes, requested_nodes
from hpc_dynamo.launch.resources import group_configs, required_resources
from hpc_dynamo.topology import Plan


def check_layout(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> None:
    """Raise ConfigError if the layout can never run in its partition."""
    for its, part in group_configs(config, plan):
        check_gpu_requests(its.cluster.slurm, part)
        for what, hint in layout_errors(its, part, nodes):
            raise ConfigError(what, hint=hint)


def fit_to_nodes(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> Config:
    """Return the configuration with no more CPUs and memory than a node has. Numbers that the user
    has set are kept."""
    if not plan.node_groups:
        return _fit_group(config, plan, nodes)
    hardware = dict(config.cluster.hardware)
    for part in plan.group_plans:
        its = _fit_group(with_hardware(config, part.hardware), part, nodes)
        cpus, memory = its.cluster.cpus_per_node, its.cluster.memory_gb_per_node
        if part.hardware:
            kind = replace(hardware[part.hardware], cpus_per_node=cpus, memory_gb_per_node=memory)
            hardware[part.hardware] = kind
        else:
            config = its
    return replace(config, cluster=replace(config.cluster, hardware=hardware))


def _fit_group(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> Config:
    """Ask for as much as the largest node of the partition has, if no node has what the workers
    need by default."""
    need, cluster = required_resources(config, plan), config.cluster
    able = [
        n for n in eligible_nodes(config.cluster, nodes) if _has_gpus(config.cluster, need.gpus, n)
    ]
    wanted = need.cpus, need.memory_gb * 1024
    if not able or any(n.cpus >= wanted[0] and n.memory_mb >= wanted[1] for n in able):
        return config
    best = max(able, key=lambda n: (min(n.cpus, wanted[0]), min(n.memory_mb, wanted[1])))
    if cluster.cpus_per_node is None and best.cpus < wanted[0]:
        cluster = replace(cluster, cpus_per_node=best.cpus)
    if cluster.memory_gb_per_node is None and best.memory_mb < wanted[1]:
        cluster = replace(cluster, memory_gb_per_node=0)  # all; the system may reserve some of it
    return replace(config, cluster=cluster)


def layout_errors(
    config: Config, plan: Plan, nodes: Sequence[PartitionNodes]
) -> Iterator[tuple[str, str]]:
    """Yield reasons why the layout can never run in its partition, each with what to change."""
    here, need = eligible_nodes(config.cluster, nodes), required_resources(config, plan)
    if not here:  # sites may hide partitions that sbatch accepts
        return
    where = f"partition {_names(here)}"
    most = max(n.gpus_of(config.cluster.slurm.gpu_type) for n in here)
    able = [n for n in here if _has_gpus(config.cluster, need.gpus, n)]
    if not able:
        kind = f" of type {config.cluster.slurm.gpu_type}" if config.cluster.slurm.gpu_type else ""
        has = f"the nodes of {where} have {most} GPUs{kind} at most"
        hint = f"cluster.gpus_per_node={most}" if most else "cluster.slurm.partition=NAME"
        hint += "; `sinfo -o '%P %G'` shows what nodes have"
        yield f"cluster.gpus_per_node={need.gpus}: {has}", hint
        return
    yield from _size_errors(config, plan, able)


def _size_errors(
    config: Config, plan: Plan, able: Sequence[PartitionNodes]
) -> Iterator[tuple[str, str]]:
    """Yield numbers that exceed those of the nodes with the requested GPUs."""
    where = f"partition {_names(able)}"
    need, cluster = required_resources(config, plan), config.cluster
    count = _count(able)
    if need.nodes > count:
        what = f"the layout needs {need.nodes} nodes, {where} has {count}"
        what += f" with {need.gpus} GPUs" if need.gpus else ""
        yield what, "fewer or smaller workers, another cluster.slurm.partition, or topology.nodes"
    cpus, memory = max(n.cpus for n in able), max(n.memory_mb for n in able)
    if cluster.cpus_per_node and cluster.cpus_per_node > cpus:
        has = f"a node of {where} has {cpus} at most"
        what = f"cluster.cpus_per_node={cluster.cpus_per_node}: {has}"
        yield what, f"cluster.cpus_per_node={cpus}, or leave it out"
    if cluster.memory_gb_per_node and need.memory_gb * 1024 > memory:
        has = f"a node of {where} has {memory / 1024:.0f} GB at most"
        what = f"cluster.memory_gb_per_node={cluster.memory_gb_per_node:g}: {has}"
        yield what, "cluster.memory_gb_per_node=0 for all of it, or leave it out"
    limits = [n.time_min for n in able]
    longest = None if None in limits else max(t for t in limits if t is not None)
    if longest is not None and need.time_min > longest:
        what = f"cluster.slurm.time={cluster.slurm.time} is {need.time_min} min, {where} allows "
        yield what + f"{longest} min", f"cluster.slurm.time={longest}"
    sizes = [n.max_nodes_per_job for n in able]
    largest = None if None in sizes else max(s for s in sizes if s is not None)
    if largest is not None and need.nodes > largest:
        what = f"the layout needs {need.nodes} nodes, a job in {where} may have {largest}"
        yield what, "fewer or smaller workers, or another cluster.slurm.partition"


def layout_warnings(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> Iterator[str]:
    """Yield warnings about a layout that may run but may not be intended."""
    used = sum(len(shard.gpus) for worker in plan.workers for shard in worker.shards)
    asked = sum(part.nodes * part.gpus_per_node for part in plan.group_plans)
    if used < asked:
        yield f"{asked - used} of {asked} GPUs are idle: the job pays for GPUs that no worker uses"
    for its, _ in group_configs(config, plan):
        if nodes and not requested_nodes(its.cluster, nodes):
            names = ", ".join(dict.fromkeys(n.partition for n in nodes))
            asks = its.cluster.slurm.partition or "none is the default"
            yield f"cluster.slurm.partition: sinfo shows no partition {asks}; known: {names}"


def _names(nodes: Sequence[PartitionNodes]) -> str:
    return "/".join(dict.fromkeys(n.partition for n in nodes))


def _has_gpus(cluster: Cluster, gpus: int, nodes: PartitionNodes) -> bool:
    """Return True if a node has the GPUs. On sites without GRES Slurm does not know the GPUs."""
    slurm = cluster.slurm
    return slurm.gpu_option == "none" or nodes.gpus_of(slurm.gpu_type) >= gpus


def _count(nodes: Sequence[PartitionNodes]) -> int:
    """Count the nodes; nodes in several partitions are counted in the largest of them."""
    sizes = dict[str, int]()
    for n in nodes:
        sizes[n.partition] = sizes.get(n.partition, 0) + n.count
    return max(sizes.values())
