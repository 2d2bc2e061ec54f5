"""Commands of vLLM workers are checked against its own parsers, see tools/record_options."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config
from hpc_dynamo.demo import provision
from hpc_dynamo.engines import Placement, engine
from hpc_dynamo.engines.contract import Contract, contracts
from hpc_dynamo.topology import plan
from tests.support.vllm import provisioned
from tests.unit.engines.contract.accepted import recorded_now, rejected

VLLM = contracts("vllm")
MODEL_OF = {
    "--compilation-config": "CompilationConfig",
    "--eplb-config": "EPLBConfig",
    "--kv-events-config": "KVEventsConfig",
    "--kv-transfer-config": "KVTransferConfig",
    "pass_config": "PassConfig",
}


def words(config: Config) -> Iterator[list[str]]:
    """The options of each worker."""
    for worker in plan(config).workers:
        place = Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "secret-token", "/tmp/x")
        yield list(engine("vllm").command(config, place).argv[3:])


def wrong(words: list[str], contract: Contract = VLLM[-1]) -> list[str]:
    """Return the options, and the fields of JSON options, that vLLM's parser would reject."""
    found = rejected(contract, words)
    for option, value in pairwise(words):
        if option in MODEL_OF:
            found += strangers(option, json.loads(value))
    return found


def strangers(name: str, fields: dict[str, Any]) -> Iterator[str]:
    for key, value in fields.items():
        if key not in VLLM[-1].fields[MODEL_OF[name]]:
            yield f"{name} has no {key}"
        elif key in MODEL_OF:
            yield from strangers(key, value)


SHAPES = ["tensor_parallel", "pipeline_parallel", "data_parallel"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("topology", ["disaggregated", "aggregated"])
@pytest.mark.parametrize("contract", VLLM, ids=[c.version for c in VLLM])
def test_every_vllm_option_is_known_with_allowed_value(
    topology: str, shape: str, contract: Contract
) -> None:
    roles = ["aggregated"] if topology == "aggregated" else ["prefill", "decode"]
    sizes = [f"topology.{role}.{shape}=2" for role in roles]
    config = compose([f"topology={topology}", *sizes, "cluster.gpus_per_node=8", "model.path=/m"])
    assert [wrong(each, contract) for each in words(config)] == [[]] * len(roles)


def test_options_of_adapters_and_sleep_are_known(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 24}')
    own = [f"model.lora.a={tmp_path}", "model.lora.b=org/b", "engine.sleep_mode=true"]
    topology = ["topology=disaggregated", "cluster.gpus_per_node=8", "model.path=/m"]
    found = list(words(compose([*topology, *own])))
    assert [wrong(each) for each in found] == [[], []]
    assert {"--max-lora-rank", "--lora-modules", "--enable-sleep-mode"} <= {*found[0]}


def test_contract_check_can_fail() -> None:
    args = {
        "mem-fraction-static": 0.8,
        "enable-dbo": 3,
        "all2all-backend": "pigeons",
        "eplb-config": {"window": 1},
        "compilation-config": {"pass_config": {"fuse_all": True}},
    }
    config = compose(["topology=aggregated", "cluster.gpus_per_node=8", "model.path=/m"])
    config = replace(config, engine=replace(config.engine, args=args))
    (options,) = words(config)
    assert wrong(options) == [
        "--mem-fraction-static is not known",
        "--enable-dbo is given ['3']",
        "--all2all-backend may not be ['pigeons']",
        "--eplb-config has no window",
        "pass_config has no fuse_all",
    ]


@pytest.mark.vllm
def test_record_equals_options_of_installed_vllm(tmp_path: Path) -> None:
    (installed,) = (c for c in VLLM if c.version == provision.VLLM)
    assert recorded_now("vllm", provisioned().python, tmp_path) == installed
