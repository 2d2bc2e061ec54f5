"""Commands and bodies for TensorRT-LLM, checked against its source (see tools/record_trtllm)."""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hpc_dynamo.config import (
    Cluster,
    Config,
    Engine,
    Model,
    Pool,
    Role,
    Router,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import Body, EngineCommand, Placement, engine
from hpc_dynamo.engines.contract import Contract, contracts
from hpc_dynamo.engines.trtllm.adapter import TRTLLM_METRICS
from hpc_dynamo.engines.trtllm.pd_protocol import TrtllmPdProtocol
from hpc_dynamo.topology import Shard, Worker
from tools import record_trtllm

OLD, RECORDED = contracts("trtllm")
FIELDS = RECORDED.fields
MODEL_OF = {
    "cache_transceiver_config": "CacheTransceiverConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "kv_cache_config": "KvCacheConfig",
    "load_balancer": "MoeLoadBalancerConfig",
    "moe_config": "MoeConfig",
    "speculative_config": "MTPDecodingConfig",  # the only one in use
}

SHAPES = [Pool(1, tensor_parallel=4), Pool(1, pipeline_parallel=2), Pool(1, data_parallel=4)]
ARGS = {
    "ep_size": 4,
    "trust-remote-code": True,
    "custom_module_dirs": ["/a", "/b"],
    "extra": {"kv_cache_config": {"free_gpu_memory_fraction": 0.8}},
}


def command(role: Role, pool: Pool, args: dict[str, Any], version: str = "") -> EngineCommand:
    split = Topology(kind=TopologyKind.disaggregated, prefill=pool, decode=pool)
    config = Config(
        engine=Engine(name="trtllm", args=args, version=version),
        model=Model(path="/model"),
        topology=Topology(aggregated=pool) if role is Role.aggregated else split,
        router=Router(kv_events=False),
        cluster=Cluster(gpus_per_node=8),
    )
    worker = Worker(0, role, (Shard(0, (0,)),), parallel=pool.parallel)
    place = Placement(worker, "10.0.0.7", (5000,), ("0",), "token", log_folder="/logs")
    return engine("trtllm").command(config, place)


@pytest.mark.parametrize("args", [{}, ARGS], ids=["ours", "the user's too"])
@pytest.mark.parametrize("pool", SHAPES, ids=["tensor", "pipeline", "data"])
@pytest.mark.parametrize("role", list(Role))
def test_every_trtllm_option_and_field_exists(role: Role, pool: Pool, args: dict[str, Any]) -> None:
    assert unknown(command(role, pool, args)) == []
    assert unknown(command(role, pool, args, OLD.version), OLD) == []


def unknown(made: EngineCommand, contract: Contract = RECORDED) -> list[str]:
    """Return the parts of a command that TensorRT-LLM would reject."""
    options = contract.by_name()
    words, wrong = list(made.argv[made.argv.index("serve") + 2 :]), list[str]()
    while words:
        name = words.pop(0)
        valued = bool(words) and not words[0].startswith("--")
        del words[:valued]
        if name not in options or valued is (options[name].kind == "flag"):
            wrong.append(name)
    (text,) = made.files.values()
    return wrong + list(strangers(contract, "TorchLlmArgs", json.loads(text)))


def strangers(
    contract: Contract, model: str, fields: dict[str, Any], path: str = ""
) -> Iterator[str]:
    """Fields that a model does not have, also inside of others."""
    for key, value in fields.items():
        if key not in contract.fields[model]:
            yield f"{path}{key}"
        elif isinstance(value, dict):
            yield from strangers(contract, MODEL_OF[key], value, f"{path}{key}.")


def test_every_option_of_multi_node_worker_exists() -> None:
    pool = Pool(1, tensor_parallel=8, pipeline_parallel=2)
    config = Config(
        engine=Engine(name="trtllm"), model=Model(path="/model"), topology=Topology(aggregated=pool)
    )
    gpus = tuple(range(8))
    shards = Shard(0, gpus), Shard(1, gpus)
    worker = Worker(0, Role.aggregated, shards, parallel=pool.parallel)
    place = Placement(worker, "10.0.0.7", (5000,), ("0",), "token", log_folder="/logs")
    made = engine("trtllm").command(config, place)
    assert unknown(made) == []
    assert "--gpus_per_node" in made.argv


def test_trtllm_contract_check_can_fail() -> None:
    wrong = {"max_num_seqs": 1, "extra": {"kv_cache_config": {"fraction": 1}, "lease": 1}}
    made = command(Role.prefill, SHAPES[0], wrong)
    assert unknown(made) == ["--max_num_seqs", "kv_cache_config.fraction", "lease"]
    made = replace(made, argv=(*made.argv, "--port"))
    assert "--port" in unknown(made)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("CompletionRequest", {"model": "m", "prompt": "p", "max_tokens": 9, "stream": True}),
        ("ChatCompletionRequest", {"model": "m", "messages": []}),
    ],
)
def test_every_field_of_disaggregated_request_exists(model: str, body: Body) -> None:
    """Its models refuse fields that they do not know."""
    params = {"request_type": "context_only", "ctx_request_id": 1}
    answer = {"choices": [{"disaggregated_params": params}], "prompt_token_ids": [1]}
    protocol = TrtllmPdProtocol()
    prefill, decode = protocol.prefill(body), protocol.decode(body, answer)
    # `max_tokens` is another name of this field of chats.
    known = {*FIELDS[model], "max_tokens"}
    assert {*prefill, *decode} <= known
    answer["usage"] = {"prompt_tokens": 1}
    decode = protocol.decode(body, answer)
    asked = {*prefill["disaggregated_params"], *decode["disaggregated_params"]}
    assert asked <= set(FIELDS["DisaggregatedParams"])


def test_recorded_metrics_exist() -> None:
    """Those for load and caches came later (docs/guides/tensorrt-llm.md)."""
    assert {TRTLLM_METRICS.ttft, TRTLLM_METRICS.itl} <= set(RECORDED.metrics)


SERVE = """
@click.command("serve")
@click.argument("model", type=str)
@click.option("--tp", "--tp_size", type=int, help="--not an option")
@click.option("--trust", is_flag=True)
@click.option("--config", "--extra", "extra", type=str)
@click.option("--dirs", multiple=True)
def serve(model): ...

@click.option("--other")
def encode(): ...
"""
MODELS = """
class Base(Strict):
    model: str
    _private: int = 0
    def f(self): here: int = 0
class Args(Base, Mirror):
    backend: Optional[str] = Field(default=None)
"""


def test_recorder_reads_source() -> None:
    read = {
        "--tp": {"kind": "value", "aliases": ["--tp_size"]},
        "--trust": {"kind": "flag"},
        "--config": {"kind": "value", "aliases": ["--extra"]},
        "--dirs": {"kind": "list"},
    }
    assert dict(record_trtllm.options(ast.parse(SERVE))) == read
    flags = (["--tp", "--tp_size"], ["--trust"], ["--config", "--extra"], ["--dirs"])
    given = {
        str(at): {"flags": names, "is_flag": at == 1, "multiple": at == 3}
        for at, names in enumerate(flags)
    }
    reference = {"commands": {"serve": {"options": given}}}
    assert dict(record_trtllm.referenced_options(reference)) == read
    assert list(record_trtllm.fields(ast.parse(MODELS), "Args")) == ["model", "backend"]
    made = ast.parse('Counter(name=self.metric_prefix + "x_total", documentation="d")')
    assert list(record_trtllm.metrics(made)) == ["trtllm_x_total"]
