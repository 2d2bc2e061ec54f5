"""Commands of SGLang workers are checked against its own parser, see tools/record_options."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.config import (
    Cluster,
    Config,
    Device,
    Engine,
    Model,
    Pool,
    Role,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import Placement, ShardRendezvous, engine
from hpc_dynamo.topology import Shard, Worker
from tests.support.vllm import provisioned_sglang
from tests.unit.engines.contract.accepted import newest, recorded_now, rejected

POOL = Pool(workers=1, tensor_parallel=2, pipeline_parallel=2)
SPLIT = Topology(kind=TopologyKind.disaggregated, prefill=POOL, decode=POOL)
WHOLE = Topology(kind=TopologyKind.aggregated, aggregated=POOL)


def words(role: Role, **args: Any) -> list[str]:
    """Return the options of a worker with KV events, and the key that its entry point adds."""
    config = Config(
        engine=Engine(name="sglang", args=args),
        model=Model(path="/shared/llama"),
        topology=WHOLE if role is Role.aggregated else SPLIT,
        cluster=Cluster(gpus_per_node=4),
    )
    if role is Role.aggregated:
        config = replace(config, engine=replace(config.engine, device=Device.cpu))
    sizes = dict(config.topology.pools)[role].parallel
    worker = Worker(3, role, (Shard(0, (0, 1, 2, 3)),), parallel=sizes)
    place = Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "secret-token", "/tmp/x")
    return told(config, place)


def told(config: Config, place: Placement) -> list[str]:
    return [*engine("sglang").command(config, place).argv[3:], "--api-key", "secret-token"]


def wrong(words: list[str]) -> list[str]:
    """Return the options that SGLang's parser would reject."""
    return rejected(newest("sglang"), words)


@pytest.mark.parametrize("role", Role)
def test_every_sglang_flag_is_known_with_allowed_value(role: Role) -> None:
    assert wrong(words(role)) == []
    assert wrong(words(role, mem_fraction_static=0.8, disable_cuda_graph=False)) == []


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("role", [Role.prefill, Role.decode])
def test_every_flag_of_a_shard_is_known(role: Role, part: int) -> None:
    config = Config(engine=Engine(name="sglang"), model=Model(path="/llama"), topology=SPLIT)
    sizes = dict(config.topology.pools)[role].parallel
    worker = Worker(3, role, (Shard(0, (0, 1)), Shard(1, (0, 1))), parallel=sizes)
    met = ShardRendezvous("10.0.0.6", (6000, 6001))
    place = Placement(
        worker, "10.0.0.7", (5000, 5001), ("0", "1"), "t", shard_index=part, rendezvous=met
    )
    assert wrong(told(config, place)) == []
    assert "--nnodes" in told(config, place)


def test_options_of_adapters_and_sleep_are_known() -> None:
    own, adapters = Engine(name="sglang", sleep_mode=True), {"a": "/a", "b": "/b"}
    config = Config(engine=own, model=Model(path="/llama", lora=adapters), topology=SPLIT)
    worker = Worker(3, Role.decode, (Shard(0, (0, 1, 2, 3)),), parallel=SPLIT.decode.parallel)
    found = told(config, Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "t"))
    assert wrong(found) == []
    assert {"--lora-paths", "--enable-memory-saver", "--enable-weights-cpu-backup"} <= {*found}


def test_contract_check_can_fail() -> None:
    found = wrong(words(Role.decode, max_model_len=9, enable_metrics=3, disaggregation_mode="x"))
    assert sorted(found) == [
        "--disaggregation-mode may not be ['x']",
        "--enable-metrics is given ['3']",
        "--max-model-len is not known",
    ]


@pytest.mark.sglang
def test_record_equals_options_of_installed_sglang(tmp_path: Path) -> None:
    assert recorded_now("sglang", provisioned_sglang().python, tmp_path) == newest("sglang")
