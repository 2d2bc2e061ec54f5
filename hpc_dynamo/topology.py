"""Where every worker runs: a pure plan from the configuration.

A tensor-parallel group talks all the time: it stays inside a node, or takes whole nodes. So does
a replica (of a data-parallel worker) that fits on a node. A worker that fits on a node is never
split; a larger one takes consecutive nodes, as few as hold it and the same of each where that
divides, whose rest is open to others. Workers without GPUs are dealt to the nodes in turn. Of
several models the workers are placed as of one. Pools on nodes of different kinds are laid out
apart, each on nodes of its own.
"""

from dataclasses import dataclass, replace
from itertools import accumulate

from hpc_dynamo.config import Config, Device, Pool, Role, validate, with_hardware
from hpc_dynamo.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """The part of a worker on one node. `gpus` are indexes among the node's GPUs."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Worker:
    """One engine instance. `rank` counts workers of the job, model by model, prefill first.

    `model` is one of `Config.models`; empty in a run of one model.
    """

    rank: int
    role: Role
    shards: tuple[Shard, ...]
    model: str = ""

    @property
    def node(self) -> int:
        """The node that serves this worker's HTTP."""
        return self.shards[0].node

    @property
    def title(self) -> str:
        """For people: its role, and its model where there are several."""
        return f"{self.model} {self.role}".lstrip()


@dataclass(frozen=True)
class Group:
    """Consecutive nodes of one kind; `kind` is a name of `cluster.hardware`, or empty."""

    kind: str
    nodes: int
    gpus_per_node: int


@dataclass(frozen=True)
class Plan:
    """The layout of a job: `nodes` machines of `gpus_per_node` GPUs and the workers on them.

    Where nodes are of named kinds `groups` has each kind with its nodes, in their order, and
    `gpus_per_node` is of the largest. `apart`: each group is a Slurm job of its own.
    """

    nodes: int
    gpus_per_node: int
    workers: tuple[Worker, ...]
    groups: tuple[Group, ...] = ()
    apart: bool = False

    def on_node(self, node: int) -> tuple[Worker, ...]:
        """Workers whose HTTP is served from this node."""
        return tuple(w for w in self.workers if w.node == node)

    def of(self, model: str) -> "Plan":
        """The same with the workers of one model alone."""
        return replace(self, workers=tuple(w for w in self.workers if w.model == model))

    @property
    def first_node(self) -> int:
        """0 but for a further job's."""
        return min(self.used)

    def after(self, rank: int, node: int) -> "Plan":
        """The same, with ranks and nodes that go on from these."""
        return replace(self, workers=tuple(_after(w, rank, node) for w in self.workers))

    @property
    def used(self) -> frozenset[int]:
        """Nodes that any part of a worker is on."""
        return frozenset(shard.node for worker in self.workers for shard in worker.shards)

    @property
    def parts(self) -> tuple["Plan", ...]:
        """The plan of each group of nodes; ranks and nodes keep their numbers."""
        if not self.groups:
            return (self,)
        ends = tuple(accumulate(group.nodes for group in self.groups))
        return tuple(self._part(g, end) for g, end in zip(self.groups, ends, strict=True))

    def _part(self, group: Group, end: int) -> "Plan":
        here = tuple(w for w in self.workers if end - group.nodes <= w.node < end)
        return Plan(group.nodes, group.gpus_per_node, here, (group,))

    def gpus_on(self, node: int) -> int:
        """GPUs of a node; the last group goes on as far as an allocation does."""
        ends = accumulate(group.nodes for group in self.groups)
        found = (g for g, end in zip(self.groups, ends, strict=True) if node < end)
        return next(found, self).gpus_per_node

    @property
    def own(self) -> "Plan":
        """What the job of the head has of it."""
        return self.parts[0] if self.apart else self

    @property
    def kind(self) -> str:
        """Of the first nodes."""
        return self.groups[0].kind if self.groups else ""

    @property
    def idle_nodes(self) -> int:
        return self.nodes - len(self.used)


def _after(worker: Worker, rank: int, node: int) -> Worker:
    shards = tuple(Shard(shard.node + node, shard.gpus) for shard in worker.shards)
    return replace(worker, rank=worker.rank + rank, shards=shards)


def fill(config: Config, layout: Plan, role: Role, nodes: int) -> Plan:
    """Further nodes with nothing but workers of a role, as many as fit.

    Without GPUs: as many a node as the fullest one of `layout` has. Raises ConfigError.
    """
    demand, gpus = (role, dict(config.topology.pools)[role]), layout.gpus_per_node
    groups = tuple(Group(group.kind, nodes, gpus) for group in layout.groups)  # all of one kind
    if not gpus:
        most = max(len(layout.on_node(node)) for node in range(layout.nodes))
        return Plan(nodes, 0, tuple(_dealt([demand] * (most * nodes), nodes)), groups)
    for count in range(nodes * gpus // demand[1].gpus, 0, -1):
        if workers := _place([demand] * count, nodes, gpus):
            return Plan(nodes, gpus, workers, groups)
    field, needed = "planner.scale_out.nodes_per_job", demand[1].gpus
    what = f"{field}={nodes} is too few for a {role} worker of {needed} GPUs"
    raise ConfigError(what, hint=f"{field}={-(-needed // gpus)}")


def plan(config: Config) -> Plan:
    """Lay out the workers. Raises ConfigError where the topology cannot be placed."""
    validate(config)
    demands = _demands(config)
    layout = _of_all_kinds(config, [(role, pool) for _, role, pool in demands])
    placed = zip(layout.workers, demands, strict=True)
    return replace(layout, workers=tuple(replace(w, model=model) for w, (model, _, _) in placed))


def _demands(config: Config) -> list[tuple[str, Role, Pool]]:
    """Model, role and shape of each worker, by rank."""
    pools = [
        (model, *pool) for model, own in config.by_model.items() for pool in own.topology.pools
    ]
    return [(model, role, pool) for model, role, pool in pools for _ in range(pool.workers)]


def _of_all_kinds(config: Config, demands: list[tuple[Role, Pool]]) -> Plan:
    used = dict.fromkeys(pool.hardware for _, pool in demands)
    return _by_kind(config, demands, tuple(used)) if any(used) else _lay_out(config, demands)


def _by_kind(config: Config, demands: list[tuple[Role, Pool]], used: tuple[str, ...]) -> Plan:
    """Group after group, each with the configuration that holds on its nodes."""
    workers, groups, nodes = dict[int, Worker](), list[Group](), 0
    for kind in used:
        ranks = [rank for rank, (_, pool) in enumerate(demands) if pool.hardware == kind]
        part = _lay_out(with_hardware(config, kind), [demands[rank] for rank in ranks])
        moved = part.after(0, nodes).workers
        workers |= {ranks[w.rank]: replace(w, rank=ranks[w.rank]) for w in moved}
        groups.append(Group(kind, part.nodes, part.gpus_per_node))
        nodes += part.nodes
    most = max(group.gpus_per_node for group in groups)
    return Plan(nodes, most, tuple(workers[rank] for rank in sorted(workers)), tuple(groups))


def _lay_out(config: Config, demands: list[tuple[Role, Pool]]) -> Plan:
    """In the order of the demands, on nodes that are all alike. All models compute on the same
    kind of device."""
    devices, kind = {own.engine.device for own in config.by_model.values()}, demands[0][1].hardware
    gpus = 0 if Device.cpu in devices else _gpus_per_node(config, kind)
    if not gpus:
        nodes = config.topology.nodes or 1
        return Plan(nodes, 0, tuple(_dealt(demands, nodes)))
    for role, pool in dict.fromkeys(demands):
        _check_shape(role, pool, gpus)
    return _pack(config.topology.nodes, demands, gpus)


def _field(name: str, kind: str) -> str:
    """Where `cluster.gpus_per_node` or `topology.nodes` stands for nodes of a kind."""
    return f"cluster.hardware.{kind}.{name.rpartition('.')[2]}" if kind else name


def _gpus_per_node(config: Config, kind: str) -> int:
    gpus, field = config.cluster.gpus_per_node, _field("cluster.gpus_per_node", kind)
    if gpus is None:
        hint = f"{field}=4 (`sinfo -o '%P %G'` shows what your nodes have)"
        raise ConfigError(f"{field} is not set and engine.device=cuda", hint=hint)
    if gpus < 1:
        hint = f"{field}=N (GPUs of a node), or engine=vllm-cpu (engine=simulator to try it out)"
        raise ConfigError(f"no GPUs are known for {kind or 'this machine'}: {field}=0", hint=hint)
    return gpus


def _check_shape(role: Role, pool: Pool, gpus: int) -> None:
    tensor = pool.tensor_parallel
    if tensor > gpus and tensor % gpus:
        raise ConfigError(
            f"topology.{role}.tensor_parallel={tensor} does not divide into whole nodes of "
            f"{_field('cluster.gpus_per_node', pool.hardware)}={gpus}",
            hint=f"topology.{role}.tensor_parallel={tensor // gpus * gpus}, or add pipeline stages",
        )


def _dealt(demands: list[tuple[Role, Pool]], nodes: int) -> list[Worker]:
    return [Worker(i, role, (Shard(i % nodes),)) for i, (role, _) in enumerate(demands)]


def _pack(given: int | None, demands: list[tuple[Role, Pool]], gpus: int) -> Plan:
    if given is not None:
        workers = _place(demands, given, gpus)
        if workers is None:
            raise _does_not_fit(demands, given, gpus)
        return Plan(given, gpus, workers)
    nodes = -(-sum(pool.gpus for _, pool in demands) // gpus)
    while (workers := _place(demands, nodes, gpus)) is None:
        nodes += 1
    return Plan(nodes, gpus, workers)


def _does_not_fit(demands: list[tuple[Role, Pool]], nodes: int, gpus: int) -> ConfigError:
    needed, had = sum(pool.gpus for _, pool in demands), nodes * gpus
    enough = nodes
    while _place(demands, enough, gpus) is None:
        enough += 1
    shape = ", ".join(
        f"topology.{role}.workers={pool.workers} of {pool.gpus} GPUs"
        for role, pool in dict.fromkeys(demands)
    )
    why = f"need {needed} GPUs" if needed > had else "cannot be placed without splitting a group"
    kind = demands[0][1].hardware
    count, each = _field("topology.nodes", kind), _field("cluster.gpus_per_node", kind)
    return ConfigError(
        f"{count}={nodes} with {each}={gpus} gives {had} GPUs, but {shape} {why}",
        hint=f"{count}={enough}, or fewer or smaller workers",
    )


def _place(demands: list[tuple[Role, Pool]], nodes: int, gpus: int) -> tuple[Worker, ...] | None:
    """Largest first, each on the first nodes that hold it; None where one finds no place."""
    free = [list(range(gpus)) for _ in range(nodes)]
    placed: dict[int, tuple[Shard, ...]] = {}
    for rank in sorted(range(len(demands)), key=lambda r: -demands[r][1].gpus):
        shards = _find(demands[rank][1], free, gpus)
        if shards is None:
            return None
        for shard in shards:
            free[shard.node] = [g for g in free[shard.node] if g not in shard.gpus]
        placed[rank] = shards
    return tuple(Worker(r, role, placed[r]) for r, (role, _) in enumerate(demands))


def _find(pool: Pool, free: list[list[int]], gpus: int) -> tuple[Shard, ...] | None:
    starts = range(len(free))
    fits = (_from(start, pool, free, gpus) for start in starts)
    return next((shards for shards in fits if shards), None)


def _from(start: int, pool: Pool, free: list[list[int]], gpus: int) -> tuple[Shard, ...] | None:
    """The shards of a worker whose first node is `start`, or None."""
    takes = list(enumerate(_shares(pool, gpus), start))
    if any(node >= len(free) or len(free[node]) < take for node, take in takes):
        return None
    return tuple(Shard(node, tuple(free[node][:take])) for node, take in takes)


def _shares(pool: Pool, gpus: int) -> list[int]:
    """GPUs that a worker takes of each of its nodes: the fewest nodes, and as evenly as units
    allow, for engines count the ranks of a node as the world by the nodes."""
    unit = _unit(pool, gpus)
    units = pool.gpus // unit
    nodes = -(-units // (gpus // unit))
    return [(units // nodes + (node < units % nodes)) * unit for node in range(nodes)]


def _unit(pool: Pool, gpus: int) -> int:
    """GPUs that are not parted: of a replica; of a tensor-parallel group where that is larger than
    a node; of a node where a group is whole nodes, as was checked before."""
    replica = pool.tensor_parallel * pool.pipeline_parallel
    return next(size for size in (replica, pool.tensor_parallel, gpus) if size <= gpus)
