"""The schema: what it refuses, what it derives, and that JSON gives it back unchanged."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.config import (
    Batch,
    Bootstrap,
    Cluster,
    Config,
    Device,
    Engine,
    Model,
    Planner,
    PlannerMode,
    Pool,
    Role,
    Route,
    ServedModel,
    Slurm,
    Task,
    Topology,
    TopologyKind,
    validate,
    walltime_minutes,
)
from hpc_dynamo.errors import ConfigError

GOOD = Topology(aggregated=Pool(workers=1))
PAIR = Topology(kind=TopologyKind.disaggregated, prefill=Pool(workers=1), decode=Pool(workers=1))


def slurm(**fields: Any) -> Config:
    return Config(topology=GOOD, cluster=Cluster(slurm=Slurm(**fields)))


def planned(topology: Topology = PAIR, **fields: Any) -> Config:
    return Config(topology=topology, planner=Planner(**({"mode": PlannerMode.load} | fields)))


def several(task: Task = Task.serve, **models: ServedModel) -> Config:
    """Return a configuration of several models, of which `a` is valid."""
    return Config(task=task, models={"a": ServedModel(path="/a", topology=GOOD), **models})


REFUSED = [
    (planned(GOOD), "planner.mode=load has no roles to change", "topology=disaggregated"),
    (
        planned(replace(PAIR, decode=Pool(workers=1, tensor_parallel=2))),
        "workers of different shapes",
        "the same parallel sizes",
    ),
    (planned(min_decode_workers=0), "planner.min_decode_workers=0", "planner.min_decode_workers=1"),
    (planned(min_decode_workers=2), "is more than the 2 workers", "planner.min_decode_workers=1"),
    (planned(interval_s=0.0), "planner.interval_s=0.0 must be above 0", "planner.interval_s=5"),
    (
        planned(stabilization_intervals=0),
        "planner.stabilization_intervals=0",
        "planner.stabilization_intervals=2",
    ),
    (planned(hysteresis=-0.1), "planner.hysteresis=-0.1", "planner.hysteresis=0.1"),
    (
        planned(kv_usage_low=0.9),
        "planner.kv_usage_low=0.9, planner.kv_usage_high=0.8",
        "kv_usage_low < kv_usage_high",
    ),
    (Config(), "topology.aggregated.workers=0", "topology.aggregated.workers=1"),
    (
        Config(topology=replace(PAIR, decode=Pool())),
        "topology.decode.workers=0 must be at least 1",
        "topology.decode.workers=1",
    ),
    (
        Config(topology=replace(PAIR, prefill=Pool(workers=-2))),
        "topology.prefill.workers=-2",
        "topology.prefill.workers=1",
    ),
    (
        Config(topology=replace(GOOD, aggregated=Pool(workers=1, tensor_parallel=0))),
        "topology.aggregated.tensor_parallel=0",
        "tensor_parallel=1",
    ),
    (
        Config(topology=replace(PAIR, decode=Pool(workers=1, pipeline_parallel=0))),
        "topology.decode.pipeline_parallel=0",
        "pipeline_parallel=1",
    ),
    (
        Config(topology=replace(PAIR, decode=Pool(workers=1, data_parallel=0))),
        "topology.decode.data_parallel=0",
        "data_parallel=1",
    ),
    (
        Config(topology=replace(PAIR, aggregated=Pool(workers=2))),
        "topology.aggregated.workers=2 has no place in kind=disaggregated",
        "topology=aggregated",
    ),
    (
        Config(topology=replace(GOOD, prefill=Pool(workers=2))),
        "topology.prefill.workers=2 has no place in kind=aggregated",
        "topology.prefill.workers=0",
    ),
    (Config(topology=replace(GOOD, nodes=0)), "topology.nodes=0", "topology.nodes=1"),
    (
        Config(topology=GOOD, engine=Engine(max_num_seqs=0)),
        "engine.max_num_seqs=0",
        "engine.max_num_seqs=256",
    ),
    (
        Config(topology=GOOD, batch=Batch(concurrency=0)),
        "batch.concurrency=0",
        "batch.concurrency=1",
    ),
    (
        Config(topology=GOOD, cluster=Cluster(heartbeat_timeout_s=1)),
        "cluster.heartbeat_timeout_s=1 must be at least 3",
        "cluster.heartbeat_timeout_s=30",
    ),
    (several(Task.batch), "a batch is of one model, and models.* names a", "once for each"),
    (
        replace(several(), planner=Planner(mode=PlannerMode.load)),
        "planner.mode=load is of one model",
        "hpc-dynamo serve",
    ),
    (
        replace(several(), route=Route(workers=("http://gpu1:8000",))),
        "models.* cannot be combined with route.*",
        "a route for each",
    ),
    (
        several(b=ServedModel(topology=replace(GOOD, nodes=3))),
        "models.b.topology.nodes=3",
        "topology.nodes=3, for the whole job",
    ),
    (
        several(b=ServedModel(topology=GOOD, engine=Engine(device=Device.cpu))),
        "models.b computes on cpu",
        "one kind of device",
    ),
    (
        several(b=ServedModel(topology=replace(PAIR, decode=Pool()))),
        "models.b: topology.decode.workers=0 must be at least 1",
        "topology.decode.workers=1",
    ),
    (slurm(time="soon"), "cluster.slurm.time=soon is not a time", "HH:MM:SS"),
    (slurm(time="0"), "cluster.slurm.time=0 leaves no time", "cluster.slurm.time=01:00:00"),
    (slurm(gpu_option="gpu"), "cluster.slurm.gpu_option=gpu", "gpus-per-node, gres, gpus"),
    (slurm(memory_option="mem0"), "cluster.slurm.memory_option=mem0", "mem, mem-per-cpu, none"),
    (slurm(gpu_type="gpu:a100:4"), "gpu_type=gpu:a100:4", "cluster.slurm.gpu_type=a100"),
    (slurm(gpu_type="a100:4"), "gpu_type=a100:4", "cluster.gpus_per_node=4"),
    (slurm(extra={"array": "1-3"}), "cluster.slurm.extra.array=1-3", "SLURM_ARRAY_TASK_ID"),
    (slurm(extra={"nodes": "3"}), "cluster.slurm.extra.nodes=3", "topology.nodes"),
    (slurm(extra={"N": "3"}), "cluster.slurm.extra.N=3", "topology.nodes"),
    (slurm(extra={"--time": "9"}), "cluster.slurm.extra.--time=9", "cluster.slurm.time"),
    (slurm(extra={"cpus_per_task": "9"}), "extra.cpus_per_task=9", "cluster.cpus_per_node"),
    (slurm(extra={"mem": ""}), "cluster.slurm.extra.mem=: --mem needs a value", "extra.mem=VALUE"),
    (slurm(extra={"p": " "}), "--partition needs a value", "false leaves the option out"),
    (slurm(extra={"qos": "true"}), "--qos needs a value", "extra.qos=VALUE"),
    (slurm(extra={"mail_type": ""}), "--mail-type needs a value", "extra.mail_type=VALUE"),
    (slurm(extra={"gres": ""}), "--gres needs a value", "extra.gres=VALUE"),
    (slurm(extra={"signal": "9"}), "extra.signal=9", "cluster.slurm.signal_before_end_s"),
]


@pytest.mark.parametrize(("config", "what", "remedy"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusals_name_field_value_and_remedy(config: Config, what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(config)
    assert what in refused.value.message
    assert remedy in refused.value.hint
    assert refused.value.exit_code == 3


NONSENSE = [
    ("batch.max_retries", Config(topology=GOOD, batch=Batch(max_retries=-1))),
    ("batch.request_timeout_s", Config(topology=GOOD, batch=Batch(request_timeout_s=0))),
    ("engine.max_restarts", Config(topology=GOOD, engine=Engine(max_restarts=-1))),
    ("engine.cpus", Config(topology=GOOD, engine=Engine(cpus=-5))),
    ("engine.memory_gb", Config(topology=GOOD, engine=Engine(memory_gb=-5))),
    ("engine.ready_timeout_s", Config(topology=GOOD, engine=Engine(ready_timeout_s=0))),
    ("engine.stop_timeout_s", Config(topology=GOOD, engine=Engine(stop_timeout_s=-1))),
    (
        "cluster.bootstrap.timeout_s",
        Config(topology=GOOD, cluster=Cluster(bootstrap=Bootstrap(timeout_s=0))),
    ),
    ("cluster.cpus_per_node", Config(topology=GOOD, cluster=Cluster(cpus_per_node=-1))),
]


@pytest.mark.parametrize(("field", "config"), NONSENSE, ids=[row[0] for row in NONSENSE])
def test_values_that_cannot_work_are_refused(field: str, config: Config) -> None:
    with pytest.raises(ConfigError, match=field):
        validate(config)


def test_good_ones_pass() -> None:
    validate(Config(topology=GOOD))
    validate(Config(topology=PAIR))


def test_a_topology_runs_the_pools_of_its_kind() -> None:
    assert [role for role, _ in GOOD.pools] == [Role.aggregated]
    assert [role for role, _ in PAIR.pools] == [Role.prefill, Role.decode]


def test_a_worker_takes_the_product_of_its_sizes() -> None:
    assert Pool(workers=5, tensor_parallel=2, pipeline_parallel=3, data_parallel=4).gpus == 24


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("90", 90),
        ("2:30", 3),  # minutes and seconds, rounded up
        ("0:01", 1),
        ("01:00:00", 60),
        ("00:00:59", 1),
        ("1-0", 1440),
        ("2-12", 3600),
        ("1-0:30", 1470),
        ("1-02:03:04", 1564),
    ],
)
def test_slurm_times(text: str, expected: int) -> None:
    assert walltime_minutes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "-1", "1:2:3:4", "1-", "1h", "01:00:00 ", "1.5", "0:0", "0-0"]
)
def test_what_is_no_slurm_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.time="):
        walltime_minutes(text)


@given(st.integers(1, 10**7))
def test_times_in_all_spellings_agree(seconds: int) -> None:
    rest, s = divmod(seconds, 60)
    hours, m = divmod(rest, 60)
    days, h = divmod(hours, 24)
    spellings = {walltime_minutes(f"{days}-{h}:{m}:{s}"), walltime_minutes(f"{hours}:{m}:{s}")}
    assert spellings == {-(-seconds // 60)}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Model(path="/shared/models/llama-3"), "llama-3"),
        (Model(path="/shared/models/llama-3/"), "llama-3"),
        (Model(path="meta-llama/Llama-3"), "Llama-3"),
        (Model(path="/shared/x", name="mine"), "mine"),
    ],
)
def test_clients_call_the_model_by_its_last_part(model: Model, name: str) -> None:
    assert model.served_name == name


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().name = "other"  # type: ignore[misc]  # the very point


leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5)


@given(
    args=st.dictionaries(st.text(), values),
    env=st.dictionaries(st.text(), st.text()),
    name=st.text(),
    srun_args=st.lists(st.text()),
    workers=st.integers(0, 100),
    nodes=st.none() | st.integers(1, 10**5),
)
def test_json_gives_a_config_back(
    args: dict[str, object],
    env: dict[str, str],
    name: str,
    srun_args: list[str],
    workers: int,
    nodes: int | None,
) -> None:
    config = Config(
        name=name,
        engine=Engine(args=args, env=env),
        topology=Topology(nodes=nodes, prefill=Pool(workers=workers)),
        cluster=Cluster(slurm=Slurm(srun_args=tuple(srun_args))),
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config
