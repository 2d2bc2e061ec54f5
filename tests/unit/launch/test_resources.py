"""Resources requested from Slurm: from the layout, or from the site's settings."""

from dataclasses import replace
from typing import Any

import pytest

from hpc_dynamo.config import (
    Batch,
    Cluster,
    Config,
    Device,
    Engine,
    Hardware,
    Pool,
    ServedModel,
    Slurm,
    Task,
    Topology,
    TopologyKind,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch.resources import (
    AGENT_CPUS,
    AGENT_MEMORY_GB,
    HEAD_CPUS,
    HEAD_MEMORY_GB,
    NodeResources,
    group_configs,
    required_resources,
    sbatch_options,
    srun_options,
)
from hpc_dynamo.topology import plan

BASE = Config(
    engine=Engine(cpus=8, memory_gb=64),
    topology=Topology(
        kind=TopologyKind.disaggregated,
        prefill=Pool(workers=2),
        decode=Pool(workers=1, tensor_parallel=4),
    ),
    cluster=Cluster(gpus_per_node=4),
)
EXTRA_CPUS = AGENT_CPUS + HEAD_CPUS
EXTRA_GB = int(AGENT_MEMORY_GB + HEAD_MEMORY_GB)


def need(config: Config) -> NodeResources:
    return required_resources(config, plan(config))


def options(config: Config) -> dict[str, Any]:
    return sbatch_options(config, plan(config))


def options_of_all(config: Config) -> list[dict[str, Any]]:
    return [sbatch_options(its, part) for its, part in group_configs(config, plan(config))]


def with_cluster(**fields: Any) -> Config:
    return replace(BASE, cluster=replace(BASE.cluster, **fields))


def with_slurm(**fields: Any) -> Config:
    return with_cluster(slurm=Slurm(**fields))


def test_fullest_node_determines_resources_of_all_nodes() -> None:
    """Four GPUs are in use there, two on the other."""
    assert need(BASE) == NodeResources(
        nodes=2, cpus=4 * 8 + EXTRA_CPUS, memory_gb=4 * 64 + EXTRA_GB, gpus=4, time_min=60
    )


def test_workers_without_gpus_count_once() -> None:
    engine = Engine(device=Device.cpu, cpus=2, memory_gb=4)
    topology = replace(BASE.topology, nodes=2, decode=Pool(workers=3))
    config = replace(BASE, engine=engine, topology=topology)
    assert need(config) == NodeResources(
        nodes=2, cpus=3 * 2 + EXTRA_CPUS, memory_gb=3 * 4 + EXTRA_GB, gpus=0, time_min=60
    )


def test_each_model_counts_with_resources_of_its_engine() -> None:
    models = {
        "large": ServedModel(engine=Engine(cpus=8, memory_gb=64), topology=BASE.topology),
        "small": ServedModel(
            engine=Engine(cpus=3, memory_gb=10), topology=Topology(aggregated=Pool(workers=2))
        ),
    }
    config = replace(BASE, task=Task.serve, models=models)
    alone = need(BASE)
    more = replace(alone, memory_gb=alone.memory_gb + int(HEAD_MEMORY_GB))
    assert need(config) == more, "the node of the large decode worker is the fullest"
    dear = replace(models["small"], engine=Engine(cpus=20, memory_gb=10))
    other = need(replace(config, models=models | {"small": dear}))
    assert other.cpus == 2 * 8 + 2 * 20 + EXTRA_CPUS


def test_memory_request_is_rounded_up() -> None:
    engine = Engine(device=Device.cpu, memory_gb=0.3)
    config = replace(BASE, engine=engine, topology=Topology(aggregated=Pool(workers=1)))
    assert need(config).memory_gb == EXTRA_GB + 1


def test_cluster_fields_override_computed_resources() -> None:
    given = need(with_cluster(cpus_per_node=96, memory_gb_per_node=500.5))
    assert (given.cpus, given.memory_gb) == (96, 501)


def test_zero_memory_requests_all_memory_of_a_node() -> None:
    assert need(with_cluster(memory_gb_per_node=0)).memory_gb == 0
    assert options(with_cluster(memory_gb_per_node=0))["mem"] == "0"
    per_cpu = with_cluster(memory_gb_per_node=0, slurm=Slurm(memory_option="mem-per-cpu"))
    assert not {"mem", "mem-per-cpu"} & options(per_cpu).keys()


def test_default_configuration_gives_minimal_sbatch_options() -> None:
    assert options(replace(BASE, name="my-run")) == {
        "job-name": "hpc-dynamo-my-run",
        "nodes": 2,
        "ntasks-per-node": 1,
        "cpus-per-task": 34,
        "mem": "260GB",
        "time": 60,
        "gpus-per-node": "4",
        "requeue": True,
    }
    assert options(BASE)["job-name"] == "hpc-dynamo"


def test_slurm_restarts_only_jobs_that_can_resume() -> None:
    def requeue(config: Config) -> set[str]:
        return {"requeue", "no-requeue"} & options(config).keys()

    assert requeue(replace(BASE, task=Task.serve)) == {"requeue"}
    assert requeue(replace(BASE, task=Task.profile)) == {"no-requeue"}
    assert requeue(replace(BASE, batch=Batch(requeue=False))) == {"no-requeue"}
    assert requeue(with_slurm(extra={"no-requeue": ""})) == {"no-requeue"}
    assert requeue(with_slurm(extra={"requeue": "false"})) == set()


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"partition": "gpu"}, {"partition": "gpu"}),
        ({"account": "g42"}, {"account": "g42"}),
        ({"qos": "high"}, {"qos": "high"}),
        ({"constraint": "a100&ib"}, {"constraint": "a100&ib"}),
        ({"reservation": "me"}, {"reservation": "me"}),
        ({"time": "1-00:00:00"}, {"time": 1440}),
        ({"gpu_type": "h100"}, {"gpus-per-node": "h100:4"}),
        ({"gpu_option": "gres"}, {"gres": "gpu:4", "gpus-per-node": None}),
        ({"gpu_option": "gres", "gpu_type": "h100"}, {"gres": "gpu:h100:4"}),
        ({"exclusive": True}, {"exclusive": True, "mem": "0", "cpus-per-task": None}),
        ({"exclusive": False}, {"exclusive": None}),
        ({"extra": {"mail-type": "END"}}, {"mail-type": "END"}),
        ({"extra": {"mem": "100GB"}}, {"mem": "100GB"}),
        # Flags, and options that are left out.
        ({"extra": {"no-requeue": "true"}}, {"no-requeue": True}),
        ({"extra": {"contiguous": ""}}, {"contiguous": True}),
        ({"extra": {"--no-requeue": "True"}}, {"no-requeue": True}),
        ({"extra": {"requeue": "false"}}, {"requeue": None}),
        ({"extra": {"kill-on-invalid-dep": "no"}}, {"kill-on-invalid-dep": "no"}),
        # One line for each resource: the user's option replaces the generated one.
        ({"extra": {"mem-per-cpu": "1G"}}, {"mem-per-cpu": "1G", "mem": None}),
        ({"extra": {"mem_per_cpu": "1G"}}, {"mem-per-cpu": "1G", "mem": None}),
        ({"extra": {"mem-per-gpu": "9G"}}, {"mem-per-gpu": "9G", "mem": None}),
        ({"extra": {"mem": "false"}}, {"mem": None}),
        ({"extra": {"gres": "gpu:a100:4"}}, {"gres": "gpu:a100:4", "gpus-per-node": None}),
        ({"extra": {"G": "8"}}, {"gpus": "8", "gpus-per-node": None}),
        ({"extra": {"gpus-per-node": "false"}}, {"gpus-per-node": None}),
        ({"extra": {"gres": "nvme:1"}}, {"gres": "nvme:1", "gpus-per-node": "4"}),
        ({"extra": {"gres": "nvme:1"}, "gpu_option": "gres"}, {"gres": "gpu:4,nvme:1"}),
        ({"extra": {"p": "long"}, "partition": "gpu"}, {"partition": "long", "p": None}),
        ({"extra": {"exclusive": "user"}}, {"exclusive": "user", "cpus-per-task": 34}),
        # The forms that a site wants its requests in.
        ({"gpu_option": "none"}, {"gpus-per-node": None, "gres": None, "gpus": None}),
        ({"gpu_option": "gpus"}, {"gpus": "8", "gpus-per-node": None}),
        ({"gpu_option": "gpus", "gpu_type": "h100"}, {"gpus": "h100:8"}),
        ({"gpu_option": "gpus-per-task"}, {"gpus-per-task": "4", "gpus-per-node": None}),
        ({"memory_option": "none"}, {"mem": None, "mem-per-cpu": None}),
        ({"memory_option": "mem-per-cpu"}, {"mem": None, "mem-per-cpu": "7831MB"}),
        ({"memory_option": "mem-per-cpu", "exclusive": True}, {"mem": None, "mem-per-cpu": None}),
        ({"memory_option": "none", "exclusive": True}, {"mem": None, "exclusive": True}),
        ({}, {"wckey": None, "mem": "260GB"}),
    ],
)
def test_each_slurm_field_becomes_its_sbatch_option(
    fields: dict[str, Any], asked: dict[str, Any]
) -> None:
    found = options(with_slurm(**fields))
    assert {name: found.get(name) for name in asked} == asked


FEWER = {
    "gpus-per-node": ("2", "a100:3", "a100:1,v100:2"),
    "gpus-per-task": ("1",),
    "gres": ("gpu:2", "gpu", "gpu:a100", "nvme:1,gpu:a100:3", "gres/gpu:2"),
    "tres-per-task": ("cpu=4,gres/gpu=3", "gres/gpu:a100:2"),
    "G": ("7", "h100:4"),
}


@pytest.mark.parametrize(("option", "text"), [(o, t) for o in FEWER for t in FEWER[o]])
def test_request_for_fewer_gpus_than_layout_is_rejected(option: str, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        options(with_slurm(extra={option: text}))
    assert f"={text} requests" in refused.value.message
    assert "cluster.gpus_per_node=4" in refused.value.message
    assert "cluster.gpus_per_node=" in refused.value.hint


@pytest.mark.parametrize(
    "extra",
    [
        {"gpus-per-node": "4"},
        {"gpus-per-node": "h100:8"},
        {"gpus-per-node": "a100:2,v100:2"},
        {"gpus": "8"},
        {"gres": "gpu:a100:4,nvme:1"},
        {"gres": "gpumem:1"},
        {"tres-per-task": "gres/gpu:4"},
        {"gpus-per-socket": "2"},
        {"gres": "false"},
    ],
)
def test_enough_or_unreadable_gpu_requests_are_accepted(extra: dict[str, str]) -> None:
    options(with_slurm(extra=extra))


def test_too_few_gpus_of_a_node_group_name_its_field() -> None:
    kind = Hardware(gpus_per_node=4, extra={"gpus-per-node": "2"})
    pools = Topology(kind=TopologyKind.aggregated, aggregated=Pool(workers=1, hardware="big"))
    config = replace(BASE, topology=pools, cluster=Cluster(hardware={"big": kind}))
    with pytest.raises(ConfigError) as refused:
        options_of_all(config)
    assert "cluster.hardware.big.gpus_per_node=4" in refused.value.message


def test_request_for_unused_gpus_is_accepted() -> None:
    config = replace(with_slurm(extra={"gres": "gpu:1"}), engine=Engine(device=Device.cpu))
    assert options(config)["gres"] == "gpu:1"


def test_layout_without_gpus_requests_none() -> None:
    config = replace(BASE, engine=Engine(device=Device.cpu))
    assert not {"gpus-per-node", "gres"} & options(config).keys()


def test_step_repeats_cpus_and_survives_lost_agent() -> None:
    config = with_slurm(srun_args=("--label", "--cpu-bind=none"))
    assert srun_options(config, plan(config)) == [
        "--mpi=none",
        "--kill-on-bad-exit=0",
        "--no-kill",
        "--cpus-per-task=34",
        "--label",
        "--cpu-bind=none",
    ]


def test_step_on_exclusive_nodes_has_no_cpu_option() -> None:
    config = with_slurm(exclusive=True)
    assert not any("cpus" in word for word in srun_options(config, plan(config)))
