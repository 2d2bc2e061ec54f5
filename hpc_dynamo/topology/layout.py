"""Layout of all workers of a job: which worker runs on which nodes and GPUs. Pure."""

from dataclasses import replace

from hpc_dynamo.config import Cluster, Config, Device, Pool, Role, Topology, validate, with_hardware
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology.packing import (
    Demand,
    check_shape,
    field_name,
    pack,
    place_workers,
    round_robin,
)
from hpc_dynamo.topology.records import NodeGroup, Plan, Worker


def plan_extra_job(topology: Topology, layout: Plan, role: Role, nodes: int) -> Plan:
    """Return the plan of an extra job: `nodes` more nodes with as many workers of a role as fit.

    Without GPUs, each node gets as many workers as the fullest node of `layout`. Raises ConfigError
    if no worker fits.
    """
    demand, gpus = (role, dict(topology.pools)[role]), layout.gpus_per_node
    groups = tuple(NodeGroup(g.hardware, nodes, gpus) for g in layout.node_groups)
    if not gpus:
        most = max(len(layout.on_node(node)) for node in range(layout.nodes))
        return Plan(nodes, 0, round_robin([demand] * (most * nodes), nodes), groups)
    for count in range(nodes * gpus // demand[1].gpus, 0, -1):
        if workers := place_workers([demand] * count, nodes, gpus):
            return Plan(nodes, gpus, workers, groups)
    field, needed = "planner.scale_out.nodes_per_job", demand[1].gpus
    what = f"{field}={nodes} is too few for a {role} worker of {needed} GPUs"
    raise ConfigError(what, hint=f"{field}={-(-needed // gpus)}")


def plan(config: Config) -> Plan:
    """Return the layout of all workers. Raises ConfigError if the topology cannot be placed."""
    validate(config)
    demands = _demands(config)
    layout = _plan_groups(config, [(role, pool) for _, role, pool in demands])
    placed = zip(layout.workers, demands, strict=True)
    return replace(layout, workers=tuple(replace(w, model=model) for w, (model, _, _) in placed))


def _demands(config: Config) -> list[tuple[str, Role, Pool]]:
    """Return model, role and sizes of each worker, by rank."""
    pools = [
        (model, *pool) for model, own in config.by_model.items() for pool in own.topology.pools
    ]
    return [(model, role, pool) for model, role, pool in pools for _ in range(pool.workers)]


def _plan_groups(config: Config, demands: list[Demand]) -> Plan:
    used = dict.fromkeys(pool.hardware for _, pool in demands)
    if any(used):
        return _plan_by_hardware(config, demands, tuple(used))
    return _with_spare_nodes(_plan_group(config, demands), config.cluster.spare_nodes)


def _with_spare_nodes(layout: Plan, spare: int) -> Plan:
    """Add nodes without workers at the end of a plan of identical nodes."""
    groups = tuple(replace(group, nodes=group.nodes + spare) for group in layout.node_groups)
    return replace(layout, nodes=layout.nodes + spare, node_groups=groups, spare_nodes=spare)


def _plan_by_hardware(config: Config, demands: list[Demand], used: tuple[str, ...]) -> Plan:
    """Lay out one group of identical nodes after another, each with its own configuration."""
    workers, groups, nodes = dict[int, Worker](), list[NodeGroup](), 0
    for kind in used:
        ranks = [rank for rank, (_, pool) in enumerate(demands) if pool.hardware == kind]
        group = _plan_group(with_hardware(config, kind), [demands[rank] for rank in ranks])
        moved = group.shifted(0, nodes).workers
        workers |= {ranks[w.rank]: replace(w, rank=ranks[w.rank]) for w in moved}
        groups.append(NodeGroup(kind, group.nodes, group.gpus_per_node))
        nodes += group.nodes
    most = max(group.gpus_per_node for group in groups)
    layout = Plan(nodes, most, tuple(workers[rank] for rank in sorted(workers)), tuple(groups))
    return _with_spare_nodes(layout, config.cluster.spare_nodes) if len(used) == 1 else layout


def _plan_group(config: Config, demands: list[Demand]) -> Plan:
    """Lay out workers on identical nodes, in the order of `demands`. All models use the same kind
    of device."""
    devices, kind = {own.engine.device for own in config.by_model.values()}, demands[0][1].hardware
    gpus = 0 if Device.cpu in devices else _gpus_per_node(config.cluster, kind)
    if not gpus:
        nodes = config.topology.nodes or 1
        return Plan(nodes, 0, round_robin(demands, nodes))
    for role, pool in dict.fromkeys(demands):
        check_shape(role, pool, gpus)
    return pack(config.topology.nodes, demands, gpus)


def _gpus_per_node(cluster: Cluster, kind: str) -> int:
    gpus, field = cluster.gpus_per_node, field_name("cluster.gpus_per_node", kind)
    if gpus is None:
        hint = f"{field}=4 (`sinfo -o '%P %G'` shows what your nodes have)"
        raise ConfigError(f"{field} is not set and engine.device=cuda", hint=hint)
    if gpus < 1:
        hint = f"{field}=N (GPUs of a node), or engine=vllm-cpu (engine=simulator to try it out)"
        raise ConfigError(f"no GPUs are known for {kind or 'this machine'}: {field}=0", hint=hint)
    return gpus
