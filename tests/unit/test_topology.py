"""Layouts of workers: a table, impossible topologies, and invariants of every layout."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpc_dynamo.config import (
    Cluster,
    Config,
    Device,
    Engine,
    Pool,
    Role,
    ServedModel,
    Task,
    Topology,
    TopologyKind,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker, plan


def pool(workers: int, tensor: int = 1, pipeline: int = 1, data: int = 1) -> Pool:
    return Pool(workers, tensor, pipeline, data)


def split(prefill: Pool, decode: Pool, gpus: int | None, nodes: int | None = None) -> Config:
    topology = Topology(
        kind=TopologyKind.disaggregated, nodes=nodes, prefill=prefill, decode=decode
    )
    return Config(topology=topology, cluster=Cluster(gpus_per_node=gpus))


def whole(aggregated: Pool, gpus: int | None, nodes: int | None = None) -> Config:
    topology = Topology(kind=TopologyKind.aggregated, nodes=nodes, aggregated=aggregated)
    return Config(topology=topology, cluster=Cluster(gpus_per_node=gpus))


def on_cpu(config: Config) -> Config:
    return replace(config, engine=Engine(device=Device.cpu))


def drawn(plan: Plan) -> str:
    """`P0 0:01` is prefill worker 0 on GPUs 0 and 1 of node 0; shards are joined by +."""
    return " | ".join(map(_drawn, plan.workers))


def _drawn(worker: Worker) -> str:
    shards = "+".join(f"{s.node}:{''.join(map(str, s.gpus))}" for s in worker.shards)
    return f"{worker.role[0].upper()}{worker.rank} {shards}"


LAYOUTS = {
    "two workers share a node": (split(pool(1), pool(1), 4), 1, "P0 0:0 | D1 0:1"),
    "many share a node": (
        split(pool(2), pool(2), 4),
        1,
        "P0 0:0 | P1 0:1 | D2 0:2 | D3 0:3",
    ),
    "TP4 fills a node": (split(pool(1, 4), pool(1, 4), 4), 2, "P0 0:0123 | D1 1:0123"),
    "the larger is placed first": (split(pool(2), pool(1, 4), 4), 2, "P0 1:0 | P1 1:1 | D2 0:0123"),
    "PP6 on nodes of 4, the rest is used": (
        split(pool(1, 1, 6), pool(2), 4),
        2,
        "P0 0:012+1:012 | D1 0:3 | D2 1:3",
    ),
    "two PP6 on nodes of 4 share no node": (
        split(pool(2, 1, 6), pool(4), 4),
        4,
        "P0 0:012+1:012 | P1 2:012+3:012 | D2 0:3 | D3 1:3 | D4 2:3 | D5 3:3",
    ),
    "TP16 over nodes of 8": (
        whole(pool(1, 16), 8),
        2,
        "A0 0:01234567+1:01234567",
    ),
    "TP4 DP4 over nodes of 8 beside TP16": (
        split(pool(1, 4, 1, 4), pool(1, 16), 8),
        4,
        "P0 0:01234567+1:01234567 | D1 2:01234567+3:01234567",
    ),
    "replicas are not parted": (
        whole(pool(1, 1, 2, 3), 5),
        2,
        "A0 0:0123+1:01",
    ),
    "replicas as large as a node leave the rest of it": (
        split(pool(1, 1, 3, 4), pool(4), 4),
        4,
        "P0 0:012+1:012+2:012+3:012 | D1 0:3 | D2 1:3 | D3 2:3 | D4 3:3",
    ),
    "PP7 cannot be even": (whole(pool(1, 1, 7), 4), 2, "A0 0:0123+1:012"),
    "TP8 PP2 over nodes of 8": (whole(pool(1, 8, 2), 8), 2, "A0 0:01234567+1:01234567"),
    "TP3 on nodes of 4 leaves one to another": (
        split(pool(1, 3), pool(1), 4),
        1,
        "P0 0:012 | D1 0:3",
    ),
    "TP3 PP2 on nodes of 4 keeps groups whole": (
        split(pool(1, 3, 2), pool(1), 4),
        2,
        "P0 0:012+1:012 | D1 0:3",
    ),
    "two of TP3 take two nodes": (whole(pool(2, 3), 4), 2, "A0 0:012 | A1 1:012"),
    "data parallel counts too": (whole(pool(1, 2, 1, 3), 4), 2, "A0 0:0123+1:01"),
    "nodes to spare stay idle": (whole(pool(1), 4, nodes=3), 3, "A0 0:0"),
    "without GPUs workers are dealt to nodes": (
        on_cpu(split(pool(2), pool(1), None, nodes=2)),
        2,
        "P0 0: | P1 1: | D2 0:",
    ),
    "without GPUs one node is enough": (on_cpu(split(pool(2), pool(1), None)), 1, None),
    "engines on CPUs take no GPUs that nodes have": (
        on_cpu(whole(pool(2), 4)),
        1,
        "A0 0: | A1 0:",
    ),
}


@pytest.mark.parametrize(("config", "nodes", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(config: Config, nodes: int, expected: str | None) -> None:
    laid_out = plan(config)
    assert laid_out.nodes == nodes
    assert expected is None or drawn(laid_out) == expected


REFUSED = {
    "more GPUs than the nodes have": (
        split(pool(3, 4), pool(1, 2), 4, nodes=2),
        "topology.nodes=2 with cluster.gpus_per_node=4 gives 8 GPUs, but "
        "topology.prefill.workers=3 of 4 GPUs, topology.decode.workers=1 of 2 GPUs need 14 GPUs",
        "topology.nodes=4, or fewer or smaller workers",
    ),
    "enough GPUs, but in the wrong places": (
        whole(pool(2, 3), 4, nodes=1),
        "topology.nodes=1 with cluster.gpus_per_node=4 gives 4 GPUs, but "
        "topology.aggregated.workers=2 of 3 GPUs need 6 GPUs",
        "topology.nodes=2",
    ),
    "a group would be split": (
        whole(pool(4, 3), 4, nodes=3),
        "topology.aggregated.workers=4 of 3 GPUs cannot be placed without splitting a group",
        "topology.nodes=4",
    ),
    "TP6 on nodes of 4": (
        whole(pool(1, 6), 4),
        "topology.aggregated.tensor_parallel=6 does not divide into whole nodes of "
        "cluster.gpus_per_node=4",
        "topology.aggregated.tensor_parallel=4, or add pipeline stages",
    ),
    "nobody said how many GPUs": (
        split(pool(1), pool(1), None),
        "cluster.gpus_per_node is not set and engine.device=cuda",
        "cluster.gpus_per_node=4",
    ),
    "a machine without GPUs": (
        split(pool(1), pool(1), 0),
        "no GPUs are known for this machine: cluster.gpus_per_node=0",
        "cluster.gpus_per_node=N (GPUs of a node), or engine=vllm-cpu (engine=simulator to try",
    ),
    "no decode worker": (
        split(pool(1), pool(0), 4),
        "topology.decode.workers=0 must be at least 1",
        "topology.decode.workers=1",
    ),
}


@pytest.mark.parametrize(("config", "what", "remedy"), REFUSED.values(), ids=REFUSED)
def test_impossible_topology_names_field_value_and_remedy(
    config: Config, what: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(config)
    assert what in refused.value.message
    assert remedy in refused.value.hint


def test_remedy_of_impossible_topology_works() -> None:
    config = split(pool(3, 4), pool(1, 2), 4, nodes=4)
    assert plan(config).nodes == 4


def test_plan_lists_workers_of_node_and_used_nodes() -> None:
    laid_out = plan(split(pool(1, 1, 6), pool(1), 4, nodes=4))
    assert [w.rank for w in laid_out.on_node(0)] == [0, 1]
    assert [w.rank for w in laid_out.on_node(1)] == [], "a second shard serves nothing"
    assert laid_out.nodes - len(laid_out.used_nodes) == 2


shapes = st.builds(
    Pool,
    workers=st.integers(1, 6),
    tensor_parallel=st.integers(1, 16),
    pipeline_parallel=st.integers(1, 7),
    data_parallel=st.integers(1, 3),
)
gpus_per_node = st.sampled_from([1, 2, 3, 4, 6, 8])


@st.composite
def configs(draw: st.DrawFn) -> Config:
    gpus, prefill, decode = draw(gpus_per_node), draw(shapes), draw(shapes)
    for p in (prefill, decode):
        assume(p.tensor_parallel <= gpus or p.tensor_parallel % gpus == 0)
    return split(prefill, decode, gpus)


def groups(worker: Worker, tensor: int) -> list[set[int]]:
    """The nodes of each tensor-parallel group: ranks count GPUs in the order of the shards."""
    nodes = [shard.node for shard in worker.shards for _ in shard.gpus]
    return [set(nodes[i : i + tensor]) for i in range(0, len(nodes), tensor)]


@given(configs())
def test_layout_invariants_hold(config: Config) -> None:
    laid_out, gpus = plan(config), config.cluster.gpus_per_node or 0
    pools = dict(config.topology.pools)
    used = [(s.node, g) for w in laid_out.workers for s in w.shards for g in s.gpus]
    assert len(used) == len(set(used)), "a GPU is used twice"
    assert all(0 <= node < laid_out.nodes and 0 <= gpu < gpus for node, gpu in used)
    assert [w.rank for w in laid_out.workers] == list(range(len(laid_out.workers)))
    roles = [role for role, p in pools.items() for _ in range(p.workers)]
    assert [w.role for w in laid_out.workers] == roles
    for worker in laid_out.workers:
        size = pools[worker.role]
        assert sum(len(s.gpus) for s in worker.shards) == size.gpus
        most = max(1, size.tensor_parallel // gpus)  # nodes of one group
        for group in groups(worker, size.tensor_parallel):
            assert len(group) == most, "a tensor-parallel group is cut"
        replica = size.tensor_parallel * size.pipeline_parallel
        if replica <= gpus:
            assert all(len(group) == 1 for group in groups(worker, replica)), "a replica is cut"
        if size.gpus <= gpus:
            assert len(worker.shards) == 1, "a worker that fits on a node is split"
        unit = next(u for u in (replica, size.tensor_parallel, gpus) if u <= gpus)
        shares = [len(shard.gpus) for shard in worker.shards]
        assert max(shares) - min(shares) in (0, unit), "it could be laid out more evenly"
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == -(-size.gpus // (gpus // unit * unit)), "fewer nodes would do"


@given(configs())
def test_derived_node_count_is_minimal(config: Config) -> None:
    laid_out, gpus = plan(config), config.cluster.gpus_per_node or 0

    def alone(p: Pool) -> int:
        replica = p.tensor_parallel * p.pipeline_parallel
        unit = replica if replica <= gpus else min(p.tensor_parallel, gpus)
        return -(-p.gpus // (gpus // unit * unit))

    assert laid_out.nodes <= sum(p.workers * alone(p) for _, p in config.topology.pools)
    assert laid_out.nodes == len(laid_out.used_nodes)

    def with_nodes(nodes: int) -> Config:
        return replace(config, topology=replace(config.topology, nodes=nodes))

    assert plan(with_nodes(laid_out.nodes)) == laid_out
    if laid_out.nodes > 1:
        with pytest.raises(ConfigError, match=f"topology.nodes={laid_out.nodes - 1} "):
            plan(with_nodes(laid_out.nodes - 1))


@given(st.integers(1, 9), st.integers(1, 5))
def test_workers_without_gpus_are_balanced(workers: int, nodes: int) -> None:
    laid_out = plan(on_cpu(whole(pool(workers), None, nodes=nodes)))
    counts = [len(laid_out.on_node(n)) for n in range(nodes)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == workers


def several(*models: Config) -> Config:
    """On the nodes of the first, named m0, m1 …"""
    served = {
        f"m{i}": ServedModel(topology=c.topology, engine=c.engine) for i, c in enumerate(models)
    }
    return replace(models[0], task=Task.serve, models=served)


def test_workers_of_several_models_share_the_nodes() -> None:
    layout = plan(several(split(pool(1), pool(1), 4), whole(pool(1, 4), 4), whole(pool(2), 4)))
    assert drawn(layout) == "P0 1:0 | D1 1:1 | A2 0:0123 | A3 1:2 | A4 1:3"
    assert [w.model for w in layout.workers] == ["m0", "m0", "m1", "m2", "m2"]
    assert [w.rank for w in layout.for_model("m2").workers] == [3, 4]
    assert layout.nodes == layout.for_model("m2").nodes == 2


def test_models_without_gpus_are_placed_round_robin() -> None:
    layout = plan(several(*(on_cpu(whole(pool(2), None, nodes=3)) for _ in range(2))))
    assert drawn(layout) == "A0 0: | A1 1: | A2 2: | A3 0:"


def sizes(layout: Plan) -> list[tuple[Role, int]]:
    return [(w.role, sum(len(s.gpus) for s in w.shards)) for w in layout.workers]


@given(configs(), st.integers(1, 6))
def test_plan_of_one_model_equals_its_own_plan(one: Config, workers: int) -> None:
    other = whole(pool(workers), one.cluster.gpus_per_node)
    layout = plan(several(one, other))
    assert sizes(layout.for_model("m0")) == sizes(plan(one))
    assert sizes(layout.for_model("m1")) == sizes(plan(other))
    used = [(s.node, g) for w in layout.workers for s in w.shards for g in s.gpus]
    assert len(used) == len(set(used)), "a GPU is used twice"
