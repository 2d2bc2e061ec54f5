"""Partitions as sinfo shows them: requests that fit, and layouts that can never run."""

from typing import Any

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Cluster, Config, Engine, Pool, Slurm, Topology, TopologyKind
from hpc_dynamo.launch.layout_check import fit_to_nodes, layout_errors, layout_warnings
from hpc_dynamo.launch.partitions import PartitionNodes, parse_sinfo
from hpc_dynamo.launch.resources import sbatch_options
from hpc_dynamo.topology import plan

LISTED = """\
gpu*|up|not of the format
gpu*|18|120000|gpu:a100:4(S:0-1)|10|2-00:00:00|ib,a100|UNLIMITED|1-4
gpu*|128|1000000+|gpu:h100:8(S:0-3),nvme:1|2|2-00:00:00|ib,h100|UNLIMITED|1-4
cpu|96|384K|(null)|1K|infinite|(null)|64|1-infinite
mig|32|250000|gpu:1g.10gb:7,gpu:a100:2|3|30:00|(null)|UNLIMITED|1-infinite
"""
NODES = tuple(parse_sinfo(LISTED))


def test_parse_sinfo_reads_all_columns() -> None:
    a100 = PartitionNodes(
        partition="gpu",
        count=10,
        cpus=18,
        memory_mb=120000,
        gpus=(("a100", 4),),
        features=("ib", "a100"),
        time_min=2880,
        max_nodes_per_job=4,
        is_default=True,
    )
    assert NODES[0] == a100
    assert NODES[1].gpus == (("h100", 8),)
    assert NODES[2] == PartitionNodes(
        "cpu", 1024, 64, 384 * 1024
    )  # the partition gives 64 CPUs of 96
    assert NODES[3].gpus == (("1g.10gb", 7), ("a100", 2))
    assert NODES[3].time_min == 30
    assert NODES[3].gpus_of(None) == 9
    assert NODES[3].gpus_of("a100") == 2


def test_parse_sinfo_accepts_untyped_gpus_and_skips_other_lines() -> None:
    (nodes,) = parse_sinfo(
        "g*|8|16000|gpu:2(S:0-1)|3|infinite|(null)|UNLIMITED|1-infinite\n\nsinfo: x"
    )
    assert nodes.gpus == (("", 2),)
    assert list(parse_sinfo("slurm_load_partitions: Unable to contact slurm controller")) == []


def config_of(workers: int = 4, nodes: int | None = None, **cluster: Any) -> Config:
    slurm = Slurm(**cluster.pop("slurm", {}))
    return Config(
        engine=Engine(cpus=8, memory_gb=64),
        topology=Topology(
            kind=TopologyKind.aggregated, nodes=nodes, aggregated=Pool(workers=workers)
        ),
        cluster=Cluster(**{"gpus_per_node": 4, "slurm": slurm, **cluster}),
    )


def asked(config: Config, nodes: tuple[PartitionNodes, ...] = NODES) -> dict[str, Any]:
    layout = plan(config)
    return dict(sbatch_options(fit_to_nodes(config, layout, nodes), layout))


def test_requests_are_limited_to_largest_node() -> None:
    only = {"constraint": "a100"}
    found = asked(config_of(slurm=only))
    assert found["cpus-per-task"] == 18, "34 would be liked"
    assert found["mem"] == "0", "all; the system may need some of what sinfo shows"
    mine = asked(config_of(slurm=only, cpus_per_node=40, memory_gb_per_node=500))
    assert (mine["cpus-per-task"], mine["mem"]) == (40, "500GB"), "what the user has set is kept"


def test_requests_are_unchanged_if_a_node_fits() -> None:
    found = asked(config_of())
    assert (found["cpus-per-task"], found["mem"]) == (34, "260GB")


@pytest.mark.parametrize("nodes", [(), NODES[2:3]])
def test_unknown_partition_leaves_requests_unchanged(nodes: tuple[PartitionNodes, ...]) -> None:
    assert asked(config_of(), nodes)["cpus-per-task"] == 34


def impossible(config: Config) -> list[str]:
    return [f"{what} try: {hint}" for what, hint in layout_errors(config, plan(config), NODES)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of(gpus_per_node=9), "gpus_per_node=9: the nodes of partition gpu have 8 GPUs"),
        (config_of(slurm={"gpu_type": "v100"}), "have 0 GPUs of type v100 at most"),
        (config_of(slurm={"gpu_type": "h100"}, nodes=3, workers=12), "partition gpu has 2 with 4"),
        (config_of(nodes=13), "the layout needs 13 nodes, partition gpu has 12"),
        (config_of(nodes=5), "a job in partition gpu may have 4"),
        (
            config_of(cpus_per_node=129),
            "cluster.cpus_per_node=129: a node of partition gpu has 128",
        ),
        (
            config_of(memory_gb_per_node=2000),
            "memory_gb_per_node=2000: a node of partition gpu has",
        ),
        (config_of(slurm={"time": "3-00:00:00"}), "try: cluster.slurm.time=2880"),
        (
            config_of(slurm={"partition": "cpu"}),
            "cluster.gpus_per_node=4: the nodes of partition cpu",
        ),
        (config_of(slurm={"partition": "mig,cpu", "time": "31"}), "partition mig allows 30 min"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_layout_names_limit_and_field(config: Config, words: str) -> None:
    assert any(words in row for row in impossible(config)), impossible(config)


@pytest.mark.parametrize(
    "config",
    [
        config_of(),
        config_of(slurm={"partition": "gpu,mig"}),
        config_of(slurm={"constraint": "a100|h100"}),
        config_of(slurm={"partition": "cpu", "gpu_option": "none"}),  # GPUs that are no GRES
        config_of(slurm={"partition": "hidden"}),
        config_of(memory_gb_per_node=0),
        config_of(gpus_per_node=2, slurm={"partition": "mig", "gpu_type": "a100", "time": "30"}),
    ],
)
def test_possible_layout_is_left_to_slurm(config: Config) -> None:
    assert impossible(config) == []


def test_unused_gpus_give_a_warning() -> None:
    config = config_of(workers=2)
    assert list(layout_warnings(config, plan(config), ())) == [
        "2 of 4 GPUs are idle: the job pays for GPUs that no worker uses"
    ]
    assert list(layout_warnings(config_of(), plan(config_of()), NODES)) == []
    elsewhere = config_of(slurm={"partition": "nosuch"})
    (said,) = layout_warnings(elsewhere, plan(elsewhere), NODES)
    assert "nosuch; known: gpu, cpu, mig" in said


def test_each_node_group_is_fitted_separately() -> None:
    config = compose(
        [
            "engine.cpus=8",
            "cluster.hardware.a.partition=gpu",
            "cluster.hardware.a.constraint=a100",
            "cluster.hardware.a.gpus_per_node=4",
            "cluster.hardware.b.partition=mig",
            "cluster.hardware.b.gpus_per_node=7",
            "topology.prefill.hardware=a",
            "topology.prefill.workers=4",
            "topology.decode.hardware=b",
            "topology.decode.workers=7",
        ]
    )
    layout = plan(config)
    kinds = fit_to_nodes(config, layout, NODES).cluster.hardware
    assert (kinds["a"].cpus_per_node, kinds["a"].memory_gb_per_node) == (18, 0)
    assert kinds["b"].cpus_per_node == 32
