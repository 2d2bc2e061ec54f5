"""Spare nodes: layout, requests to Slurm, and what happens to the workers of failed nodes."""

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Role
from hpc_dynamo.errors import ConfigError, LaunchError
from hpc_dynamo.head.membership.losses import shows_bad_node
from hpc_dynamo.head.membership.spare_nodes import SpareNodes
from hpc_dynamo.launch.resources import sbatch_options
from hpc_dynamo.messages import NodeRecord, Roster, WorkerReport, WorkerState
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.tasks.start_layout import start_layout
from hpc_dynamo.topology import Plan, plan, replace_failed, with_replacements

THREE_AND_TWO = (
    *("engine=simulator", "topology=aggregated", "topology.nodes=3"),
    *("topology.aggregated.workers=3", "cluster.spare_nodes=2"),
)
LAYOUT = plan(compose(THREE_AND_TWO))
HOSTS = [f"n{node}" for node in range(5)]


def record(node: int, *faults: str) -> NodeRecord:
    return NodeRecord(node=node, host=HOSTS[node], address="", pid=1, log="", faults=faults)


def roster(*records: NodeRecord) -> Roster:
    return Roster(nodes=records, method="tcp", seconds=0.1)


ALL_FIT = roster(*map(record, range(5)))


@pytest.fixture
def spared(run: Run) -> Attempt:
    """Return an attempt with three workers on three nodes, and two spare nodes."""
    config = compose(THREE_AND_TWO)
    return run.new_attempt(config, LAYOUT)


def nodes_of_workers(layout: Plan) -> list[int]:
    return [worker.node for worker in layout.workers]


def test_spare_nodes_are_requested_and_run_no_workers() -> None:
    assert (LAYOUT.nodes, LAYOUT.spare_nodes) == (5, 2)
    assert nodes_of_workers(LAYOUT) == [0, 1, 2]
    options = sbatch_options(compose(THREE_AND_TWO), LAYOUT)
    assert options["nodes"] == 5
    assert options["no-kill"] is True
    without = compose([*THREE_AND_TWO, "cluster.spare_nodes=0"])
    assert "no-kill" not in sbatch_options(without, plan(without))


def test_spare_nodes_of_one_kind_of_hardware() -> None:
    kind = ("cluster.hardware.big.gpus_per_node=2", "topology.aggregated.hardware=big")
    words = ("engine=vllm", "topology=aggregated", "topology.aggregated.workers=3")
    laid_out = plan(compose([*words, *kind, "cluster.spare_nodes=1"]))
    assert (laid_out.nodes, laid_out.spare_nodes) == (3, 1)
    (group,) = laid_out.group_plans
    assert (group.nodes, group.spare_nodes) == (3, 1)


def test_nodes_of_several_kinds_have_no_spare_nodes() -> None:
    kinds = (
        *("cluster.hardware.a.gpus_per_node=2", "cluster.hardware.b.gpus_per_node=2"),
        *("topology.prefill.hardware=a", "topology.decode.hardware=b"),
    )
    config = compose(["engine=vllm", "topology=disaggregated", *kinds, "cluster.spare_nodes=1"])
    with pytest.raises(ConfigError, match="nodes of several kinds"):
        plan(config)


# Nodes that fail one after the other, and the nodes of the three workers then. A worker on a node
# that has failed is lost.
FAILURES = {
    "none": ([], [0, 1, 2]),
    "one": ([1], [0, 3, 2]),
    "two": ([2, 0], [4, 1, 3]),
    "more than spare nodes": ([0, 1, 2], [3, 4, 2]),
    "an unused one": ([3], [0, 1, 2]),
    "an unused one, then one": ([3, 1], [0, 4, 2]),
    "one and its spare node": ([1, 3], [0, 4, 2]),
    "one and both spare nodes": ([1, 3, 4], [0, 4, 2]),
    "all": ([0, 1, 2, 3, 4], [3, 4, 2]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_workers_of_failed_nodes_move_to_spare_nodes(case: str) -> None:
    failures, expected = FAILURES[case]
    replacements = dict[int, int]()
    for count in range(len(failures)):
        replacements = replace_failed(LAYOUT, replacements, failures[: count + 1])
    assert nodes_of_workers(with_replacements(LAYOUT, replacements)) == expected


def test_workers_of_a_node_share_one_spare_node() -> None:
    words = ("engine=vllm", "cluster.gpus_per_node=4", "topology.aggregated.workers=3")
    wide = ("topology.aggregated.tensor_parallel=4", "topology.aggregated.pipeline_parallel=2")
    several = compose(["topology=aggregated", *words, "cluster.spare_nodes=1"])
    moved = with_replacements(plan(several), replace_failed(plan(several), {}, [0]))
    assert [(w.node, w.shards[0].gpus) for w in moved.workers] == [(1, (0,)), (1, (1,)), (1, (2,))]
    over_nodes = compose(["topology=aggregated", *words, *wide, "cluster.spare_nodes=1"])
    moved = with_replacements(plan(over_nodes), replace_failed(plan(over_nodes), {}, [3]))
    assert [[s.node for s in w.shards] for w in moved.workers] == [[0, 1], [2, 6], [4, 5]]


@given(st.lists(st.sets(st.integers(0, 4)), max_size=6))
def test_no_worker_is_on_a_failed_node_while_a_spare_node_is_left(steps: list[set[int]]) -> None:
    replacements = dict[int, int]()
    for failed in steps:
        replacements = replace_failed(LAYOUT, replacements, failed)
        nodes = nodes_of_workers(with_replacements(LAYOUT, replacements))
        assert len(set(nodes)) == 3, "two nodes were replaced by the same one"
        assert len(failed.intersection(nodes)) == max(0, len(failed) - 2)


def test_node_that_returns_takes_over_lost_workers(spared: Attempt) -> None:
    spares = SpareNodes(spared, ALL_FIT)
    assert [spares.failed(node) for node in (1, 2, 0)] == [True, True, False]
    assert nodes_of_workers(spares.layout) == [0, 3, 4]
    assert spares.joined(record(1))
    assert nodes_of_workers(spares.layout) == [1, 3, 4]
    assert not spares.joined(record(0)), "there is nothing left to run"


def test_node_with_a_fault_is_no_spare_node(spared: Attempt) -> None:
    spares = SpareNodes(spared, roster(*map(record, range(3)), record(3, "no GPU"), record(4)))
    assert spares.failed(0)
    assert nodes_of_workers(spares.layout) == [4, 1, 2]
    assert not spares.joined(record(3, "no GPU"))
    assert not spares.failed(1)


def test_restarted_head_knows_the_layout(spared: Attempt) -> None:
    assert SpareNodes(spared, ALL_FIT).failed(1)
    again = SpareNodes(spared, ALL_FIT)
    assert nodes_of_workers(again.layout) == [0, 3, 2]
    assert again.failed(3)
    assert nodes_of_workers(again.layout) == [0, 4, 2], "node 1 has not returned"


def test_bad_node_is_no_spare_node_when_it_rejoins(spared: Attempt) -> None:
    spares = SpareNodes(spared, ALL_FIT)
    assert spares.failed(1, for_good=True)
    assert not spares.joined(record(1))
    assert [spares.failed(node) for node in (0, 2)] == [True, False]
    assert nodes_of_workers(spares.layout) == [4, 3, 2]


def report(rank: int, node: int, state: str) -> WorkerReport:
    role, of = Role.aggregated, WorkerState(state)
    return WorkerReport(rank=rank, role=role, node=node, host=HOSTS[node], state=of)


BAD_NODES: dict[str, tuple[list[tuple[int, int, str]], bool]] = {
    # rank, node and state of the other workers when worker 0 on node 0 is lost
    "another node works": ([(1, 1, "ready")], True),
    "no node works": ([(1, 1, "starting")], False),
    "all are lost": ([(1, 1, "lost")], False),
    "another worker there works": ([(1, 0, "ready"), (2, 1, "ready")], False),
    "another worker there starts": ([(1, 0, "starting"), (2, 1, "ready")], False),
    "all workers there are lost": ([(1, 0, "lost"), (2, 1, "ready")], True),
    "the only worker": ([], False),
}


@pytest.mark.parametrize("case", BAD_NODES)
def test_node_is_bad_if_only_its_workers_are_lost(case: str) -> None:
    others, expected = BAD_NODES[case]
    before = [report(0, 0, "failed"), *(report(*other) for other in others)]
    assert shows_bad_node(report(0, 0, "lost"), before) is expected
    assert not shows_bad_node(report(0, 0, "failed"), before)


def test_requeued_job_uses_its_plan(spared: Attempt) -> None:
    assert SpareNodes(spared, ALL_FIT).failed(1)
    requeued = Roster(nodes=ALL_FIT.nodes, method="tcp", seconds=0.1, restart_count=1)
    assert nodes_of_workers(SpareNodes(spared, requeued).layout) == [0, 1, 2]


STARTS: dict[str, tuple[Collection[int], Collection[int], list[int]]] = {
    # missing nodes, nodes with a fault, nodes of the workers
    "all fit": ((), (), [0, 1, 2]),
    "faults": ((), (0, 2), [3, 1, 4]),
    "missing": ((1, 3), (), [0, 4, 2]),
    "both": ((1,), (3,), [0, 4, 2]),
    "unused nodes": ((3,), (4,), [0, 1, 2]),
}


def at_start(missing: Collection[int], bad: Collection[int]) -> Roster:
    came = sorted({*range(5)} - {*missing})
    return roster(*(record(node, *(["a fault"] if node in bad else [])) for node in came))


@pytest.mark.parametrize("case", STARTS)
def test_job_starts_without_unfit_nodes(spared: Attempt, case: str) -> None:
    missing, bad, expected = STARTS[case]
    found = at_start(missing, bad)
    _, layout = start_layout(spared, found, HOSTS, is_head=True)
    assert nodes_of_workers(layout) == expected
    assert nodes_of_workers(SpareNodes(spared, found).layout) == expected, "head and agents differ"


@pytest.mark.parametrize(("missing", "bad"), [((), (0, 1, 2)), ((1,), (2, 3)), ((), range(5))])
def test_too_few_fit_nodes_end_the_job(
    spared: Attempt, missing: Collection[int], bad: Collection[int]
) -> None:
    with pytest.raises(LaunchError, match="a fault") as refused:
        start_layout(spared, at_start(missing, bad), HOSTS, is_head=True)
    assert set(refused.value.bad_hosts) == {HOSTS[node] for node in {*missing, *bad}}


def test_default_has_no_spare_nodes() -> None:
    assert Config().cluster.spare_nodes == 0
