"""Placement of workers on identical nodes. Pure.

A tensor-parallel group exchanges data in every step, so it stays inside a node or takes whole
nodes. The same holds for a replica of a data-parallel worker that fits on a node. A worker that
fits on a node is never split. A larger worker takes the smallest number of consecutive nodes, with
the same number of GPUs on each if that number divides. Other workers may use the remaining GPUs of
its nodes.
"""

from hpc_dynamo.config import Pool, Role
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology.records import Plan, Shard, Worker

Demand = tuple[Role, Pool]  # role and sizes of one worker
FreeGpus = list[list[int]]  # indexes of unused GPUs, by node


def field_name(name: str, kind: str) -> str:
    """Return the name of `cluster.gpus_per_node` or `topology.nodes` for nodes of this hardware."""
    return f"cluster.hardware.{kind}.{name.rpartition('.')[2]}" if kind else name


def check_shape(role: Role, pool: Pool, gpus: int) -> None:
    """Raise ConfigError if a tensor-parallel group is larger than a node but not whole nodes."""
    tensor = pool.tensor_parallel
    if tensor > gpus and tensor % gpus:
        raise ConfigError(
            f"topology.{role}.tensor_parallel={tensor} does not divide into whole nodes of "
            f"{field_name('cluster.gpus_per_node', pool.hardware)}={gpus}",
            hint=f"topology.{role}.tensor_parallel={tensor // gpus * gpus}, or add pipeline stages",
        )


def round_robin(demands: list[Demand], nodes: int) -> tuple[Worker, ...]:
    return tuple(
        Worker(rank, role, (Shard(rank % nodes),), parallel=pool.parallel)
        for rank, (role, pool) in enumerate(demands)
    )


def pack(nodes: int | None, demands: list[Demand], gpus: int) -> Plan:
    """Place the workers on `nodes` nodes of `gpus` GPUs, or on as few as they need. Raises
    ConfigError."""
    if nodes is not None:
        workers = place_workers(demands, nodes, gpus)
        if workers is None:
            raise _does_not_fit(demands, nodes, gpus)
        return Plan(nodes, gpus, workers)
    nodes = -(-sum(pool.gpus for _, pool in demands) // gpus)
    while (workers := place_workers(demands, nodes, gpus)) is None:
        nodes += 1
    return Plan(nodes, gpus, workers)


def _does_not_fit(demands: list[Demand], nodes: int, gpus: int) -> ConfigError:
    needed, available = sum(pool.gpus for _, pool in demands), nodes * gpus
    enough = nodes
    while place_workers(demands, enough, gpus) is None:
        enough += 1
    shape = ", ".join(
        f"topology.{role}.workers={pool.workers} of {pool.gpus} GPUs"
        for role, pool in dict.fromkeys(demands)
    )
    reason = (
        f"need {needed} GPUs"
        if needed > available
        else "cannot be placed without splitting a group"
    )
    kind = demands[0][1].hardware
    count, each = field_name("topology.nodes", kind), field_name("cluster.gpus_per_node", kind)
    return ConfigError(
        f"{count}={nodes} with {each}={gpus} gives {available} GPUs, but {shape} {reason}",
        hint=f"{count}={enough}, or fewer or smaller workers",
    )


def place_workers(demands: list[Demand], nodes: int, gpus: int) -> tuple[Worker, ...] | None:
    """Place workers largest first, each on the first nodes with room; None if one does not fit."""
    free = [list(range(gpus)) for _ in range(nodes)]
    placed: dict[int, tuple[Shard, ...]] = {}
    for rank in sorted(range(len(demands)), key=lambda r: -demands[r][1].gpus):
        shards = _first_fit(demands[rank][1], free, gpus)
        if shards is None:
            return None
        for shard in shards:
            free[shard.node] = [g for g in free[shard.node] if g not in shard.gpus]
        placed[rank] = shards
    return tuple(
        Worker(rank, role, placed[rank], parallel=pool.parallel)
        for rank, (role, pool) in enumerate(demands)
    )


def _first_fit(pool: Pool, free: FreeGpus, gpus: int) -> tuple[Shard, ...] | None:
    fits = (_shards_from(start, pool, free, gpus) for start in range(len(free)))
    return next((shards for shards in fits if shards), None)


def _shards_from(start: int, pool: Pool, free: FreeGpus, gpus: int) -> tuple[Shard, ...] | None:
    """Return the shards of a worker whose first node is `start`; None if it has no room there."""
    takes = list(enumerate(_gpus_by_node(pool, gpus), start))
    if any(node >= len(free) or len(free[node]) < take for node, take in takes):
        return None
    return tuple(Shard(node, tuple(free[node][:take])) for node, take in takes)


def _gpus_by_node(pool: Pool, gpus: int) -> list[int]:
    """Return the GPUs of a worker on each of its nodes: on as few nodes as possible, and evenly,
    since engines divide the number of ranks by the number of nodes."""
    unit = _unsplit_gpus(pool, gpus)
    units = pool.gpus // unit
    nodes = -(-units // (gpus // unit))
    return [(units // nodes + (node < units % nodes)) * unit for node in range(nodes)]


def _unsplit_gpus(pool: Pool, gpus: int) -> int:
    """Return the size of the unit that stays on one node: a replica, or else a tensor-parallel
    group, or else a whole node (see check_shape)."""
    sizes = pool.parallel
    return next(size for size in (sizes.replica, sizes.tensor, gpus) if size <= gpus)
