"""Checks of a layout against its partition, and requests limited to its nodes. Pure."""

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
    for group_config, group in group_configs(config, plan):
        check_gpu_requests(group_config.cluster.slurm, group)
        for what, hint in layout_errors(group_config, group, nodes):
            raise ConfigError(what, hint=hint)


def fit_to_nodes(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> Config:
    """Return the configuration with no more CPUs and memory than a node has. Numbers that the user
    has set are kept."""
    if not plan.node_groups:
        return _fit_group(config, plan, nodes)
    hardware = dict(config.cluster.hardware)
    for group in plan.group_plans:
        group_config = _fit_group(with_hardware(config, group.hardware), group, nodes)
        cpus, memory = group_config.cluster.cpus_per_node, group_config.cluster.memory_gb_per_node
        if group.hardware:
            kind = replace(hardware[group.hardware], cpus_per_node=cpus, memory_gb_per_node=memory)
            hardware[group.hardware] = kind
        else:
            config = group_config
    return replace(config, cluster=replace(config.cluster, hardware=hardware))


def _fit_group(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> Config:
    """Limit default requests to the largest node of the partition, if no node has enough."""
    need, cluster = required_resources(config, plan), config.cluster
    candidates = [
        n for n in eligible_nodes(config.cluster, nodes) if _has_gpus(config.cluster, need.gpus, n)
    ]
    needed = need.cpus, need.memory_gb * 1024
    if not candidates or any(n.cpus >= needed[0] and n.memory_mb >= needed[1] for n in candidates):
        return config
    best = max(candidates, key=lambda n: (min(n.cpus, needed[0]), min(n.memory_mb, needed[1])))
    if cluster.cpus_per_node is None and best.cpus < needed[0]:
        cluster = replace(cluster, cpus_per_node=best.cpus)
    if cluster.memory_gb_per_node is None and best.memory_mb < needed[1]:
        cluster = replace(cluster, memory_gb_per_node=0)  # all; the system may reserve some of it
    return replace(config, cluster=cluster)


def layout_errors(
    config: Config, plan: Plan, nodes: Sequence[PartitionNodes]
) -> Iterator[tuple[str, str]]:
    """Yield reasons why the layout can never run in its partition, each with what to change."""
    eligible, need = eligible_nodes(config.cluster, nodes), required_resources(config, plan)
    if not eligible:  # sites may hide partitions that sbatch accepts
        return
    where = f"partition {_names(eligible)}"
    max_gpus = max(n.gpus_of(config.cluster.slurm.gpu_type) for n in eligible)
    candidates = [n for n in eligible if _has_gpus(config.cluster, need.gpus, n)]
    if not candidates:
        kind = f" of type {config.cluster.slurm.gpu_type}" if config.cluster.slurm.gpu_type else ""
        has = f"the nodes of {where} have {max_gpus} GPUs{kind} at most"
        hint = f"cluster.gpus_per_node={max_gpus}" if max_gpus else "cluster.slurm.partition=NAME"
        hint += "; `sinfo -o '%P %G'` shows what nodes have"
        yield f"cluster.gpus_per_node={need.gpus}: {has}", hint
        return
    yield from _size_errors(config, plan, candidates)


def _size_errors(
    config: Config, plan: Plan, candidates: Sequence[PartitionNodes]
) -> Iterator[tuple[str, str]]:
    """Yield numbers that exceed those of the nodes with the requested GPUs."""
    where = f"partition {_names(candidates)}"
    need, cluster = required_resources(config, plan), config.cluster
    count = _count(candidates)
    if need.nodes > count:
        what = f"the layout needs {need.nodes} nodes, {where} has {count}"
        what += f" with {need.gpus} GPUs" if need.gpus else ""
        yield what, "fewer or smaller workers, another cluster.slurm.partition, or topology.nodes"
    cpus, memory = max(n.cpus for n in candidates), max(n.memory_mb for n in candidates)
    if cluster.cpus_per_node and cluster.cpus_per_node > cpus:
        has = f"a node of {where} has {cpus} at most"
        what = f"cluster.cpus_per_node={cluster.cpus_per_node}: {has}"
        yield what, f"cluster.cpus_per_node={cpus}, or leave it out"
    if cluster.memory_gb_per_node and need.memory_gb * 1024 > memory:
        has = f"a node of {where} has {memory / 1024:.0f} GB at most"
        what = f"cluster.memory_gb_per_node={cluster.memory_gb_per_node:g}: {has}"
        yield what, "cluster.memory_gb_per_node=0 for all of it, or leave it out"
    limits = [n.time_min for n in candidates]
    longest = None if None in limits else max(t for t in limits if t is not None)
    if longest is not None and need.time_min > longest:
        what = f"cluster.slurm.time={cluster.slurm.time} is {need.time_min} min, {where} allows "
        yield what + f"{longest} min", f"cluster.slurm.time={longest}"
    sizes = [n.max_nodes_per_job for n in candidates]
    largest = None if None in sizes else max(s for s in sizes if s is not None)
    if largest is not None and need.nodes > largest:
        what = f"the layout needs {need.nodes} nodes, a job in {where} may have {largest}"
        yield what, "fewer or smaller workers, or another cluster.slurm.partition"


def layout_warnings(config: Config, plan: Plan, nodes: Sequence[PartitionNodes]) -> Iterator[str]:
    """Yield warnings about a layout that may run but may not be intended."""
    used = sum(len(shard.gpus) for worker in plan.workers for shard in worker.shards)
    groups = plan.group_plans
    allocated = sum((group.nodes - group.spare_nodes) * group.gpus_per_node for group in groups)
    if used < allocated:
        idle = f"{allocated - used} of {allocated} GPUs are idle"
        yield f"{idle}: the job pays for GPUs that no worker uses"
    for group_config, _ in group_configs(config, plan):
        if nodes and not requested_nodes(group_config.cluster, nodes):
            names = ", ".join(dict.fromkeys(n.partition for n in nodes))
            requested = group_config.cluster.slurm.partition or "none is the default"
            yield f"cluster.slurm.partition: sinfo shows no partition {requested}; known: {names}"


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
