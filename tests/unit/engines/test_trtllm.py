"""Command, options file and prefill/decode protocol of TensorRT-LLM."""

import hmac
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import (
    Cluster,
    Config,
    Device,
    Engine,
    Model,
    Pool,
    Role,
    Router,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import Body, EngineCommand, Placement, engine
from hpc_dynamo.engines.metrics import EngineMetrics, parse_metrics
from hpc_dynamo.engines.trtllm.pd_protocol import END_REQUEST_ID, FIRST_REQUEST_ID, TrtllmPdProtocol
from hpc_dynamo.engines.trtllm.signature import signature_headers, signing_key
from hpc_dynamo.errors import ConfigError, RequestFailed
from hpc_dynamo.histogram import Histogram
from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.trtllm_protocol import DisaggregatedParams, check_signature
from hpc_dynamo.topology import Shard, Worker, plan

SPLIT = Topology(
    kind=TopologyKind.disaggregated,
    prefill=Pool(workers=1, tensor_parallel=2),
    decode=Pool(workers=1, data_parallel=4),
)
CONFIG = Config(
    engine=Engine(name="trtllm", env={"A": "1"}),
    model=Model(path="/shared/it's a model/llama"),
    topology=SPLIT,
    router=Router(kv_events=False),
    cluster=Cluster(gpus_per_node=4),
)
TRTLLM = engine("trtllm")
LOGS = "/runs/r/attempts/1/logs"
ALWAYS = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
NIXL = {"cache_transceiver_config": {"backend": "NIXL", "kv_transfer_timeout_ms": 300000}}
SIGNED = {**NIXL, "internal_request_auth_key": signing_key("token")}


def with_args(**args: Any) -> Config:
    return replace(CONFIG, engine=replace(CONFIG.engine, args=args))


def command(config: Config, role: Role) -> EngineCommand:
    sizes = dict(config.topology.pools)[role].parallel
    worker = Worker(3, role, (Shard(0, (0, 1)),), parallel=sizes)
    place = Placement(worker, "10.0.0.7", (5000,), ("2", "3"), "token", log_folder=LOGS)
    return TRTLLM.command(config, place)


def options(config: Config, role: Role = Role.prefill) -> dict[str, str]:
    """Return the options of a command line; the last value counts, as in click."""
    words = command(config, role).argv[5:]
    assert len(words) % 2 == 0
    return dict(zip(words[::2], words[1::2], strict=True))


def file(config: Config, role: Role = Role.prefill) -> dict[str, Any]:
    ((name, text),) = command(config, role).files.items()
    assert name == "worker-3.yaml"
    found: dict[str, Any] = json.loads(text)
    return found


def test_extra_may_be_json_text() -> None:
    made = file(with_args(extra='{"kv_cache_config": {"free_gpu_memory_fraction": 0.8}}'))
    assert made["kv_cache_config"] == {"free_gpu_memory_fraction": 0.8}


def test_the_command() -> None:
    made = command(CONFIG, Role.prefill)
    module = ("-m", "tensorrt_llm.commands.serve", "serve")
    assert made.argv[:5] == (sys.executable, *module, "/shared/it's a model/llama")
    assert options(CONFIG) == {
        "--host": "10.0.0.7",
        "--port": "5000",
        "--backend": "pytorch",
        "--tp_size": "2",
        "--pp_size": "1",
        "--max_batch_size": "256",
        "--extra_llm_api_options": f"{LOGS}/worker-3.yaml",
        "--served_model_name": "llama",
    }
    visible = {"A": "1", "CUDA_VISIBLE_DEVICES": "2,3", "TRTLLM_NO_USAGE_STATS": "1"}
    assert dict(made.env) == visible


def test_attention_data_parallel_uses_tensor_parallel_ranks() -> None:
    assert options(CONFIG, Role.decode)["--tp_size"] == "4"
    assert file(CONFIG, Role.decode) == {**ALWAYS, **SIGNED, "enable_attention_dp": True}


def test_options_file_of_each_role() -> None:
    assert file(CONFIG) == {**ALWAYS, **SIGNED, "disable_overlap_scheduler": True}
    alone = replace(CONFIG, topology=Topology(aggregated=Pool(workers=1)))
    assert file(alone, Role.aggregated) == ALWAYS


def test_extra_is_merged_into_options_file() -> None:
    mine = {
        "cache_transceiver_config": {"max_tokens_in_buffer": 8192},
        "kv_cache_config": {"enable_block_reuse": False},
        "return_perf_metrics": False,
    }
    assert file(with_args(extra=mine), Role.prefill) == {
        "return_perf_metrics": False,
        "enable_iter_perf_stats": True,
        "cache_transceiver_config": {
            **NIXL["cache_transceiver_config"],
            "max_tokens_in_buffer": 8192,
        },
        "internal_request_auth_key": signing_key("token"),
        "disable_overlap_scheduler": True,
        "kv_cache_config": {"enable_block_reuse": False},
    }
    assert "--extra" not in options(with_args(extra=mine))


def test_older_versions_get_no_options_and_fields_of_1_4() -> None:
    for version, signed in (("1.3", False), ("1.2.1", False), ("1.4.0rc1", True), ("2.0", True)):
        config = replace(CONFIG, engine=replace(CONFIG.engine, version=version))
        assert ("--served_model_name" in options(config)) is signed
        assert ("internal_request_auth_key" in file(config)) is signed
        protocol = TRTLLM.pd_protocol(config.engine)
        assert isinstance(protocol, TrtllmPdProtocol)
        body = protocol.decode(BODY, {**answer(), "usage": USAGE})
        assert ("ctx_usage" in body["disaggregated_params"]) is signed
        assert bool(protocol.decode_headers(body, "token")) is signed


def test_options_are_spelled_as_trtllm_serve_does() -> None:
    words = command(with_args(generation_config="auto"), Role.prefill).argv
    assert words[words.index("--generation-config") + 1] == "auto"


def test_user_options_override_generated_click_options() -> None:
    args = {"max-batch-size": 7, "ep_size": 2, "trust_remote_code": True, "revision": None}
    several = {"custom_module_dirs": ["/a", "/b"], "enable_chunked_prefill": False}
    words = command(with_args(**args, **several), Role.prefill).argv
    assert words[words.index("--max_batch_size") + 1] == "7"
    assert words[words.index("--ep_size") :] == (
        *("--ep_size", "2", "--trust_remote_code"),
        *("--custom_module_dirs", "/a", "--custom_module_dirs", "/b"),
    )


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (replace(CONFIG, model=Model()), "model.path is not set"),
        (replace(CONFIG, engine=Engine(name="trtllm", device=Device.cpu)), "runs only on GPUs"),
        (with_args(config="mine.yaml"), "would replace the options file"),
        (with_args(**{"extra-llm-api-options": "mine.yaml"}), "would replace the options file"),
        (with_args(extra="mine.yaml"), "must be a mapping"),
        (with_args(extra={"kv_cache_config": 0.8}), "extra.kv_cache_config=0.8 must be a mapping"),
        (with_args(extra={"cache_transceiver_config": "NIXL"}), "must be a mapping"),
        (with_args(extra={"kv_cache_config": {"tokens_per_block": "x"}}), "tokens_per_block=x is"),
        (with_args(extra={"internal_request_auth_key": "mine"}), "hpc-dynamo sets this field"),
        (with_args(extra={"tensor_parallel_size": 8}), "hpc-dynamo sets this field"),
        (replace(CONFIG, router=Router()), "publishes no KV events"),
        (
            replace(
                CONFIG,
                topology=replace(SPLIT, decode=Pool(1, tensor_parallel=2, data_parallel=2)),
            ),
            "data or tensor parallel, not both",
        ),
    ],
)
def test_unsupported_trtllm_settings_are_rejected(config: Config, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        TRTLLM.check(config, plan(config))
    TRTLLM.check(CONFIG, plan(CONFIG))


def test_tokens_of_a_kv_block() -> None:
    assert TRTLLM.block_tokens(CONFIG.engine) == 32
    larger = with_args(extra={"kv_cache_config": {"tokens_per_block": 64}})
    assert TRTLLM.block_tokens(larger.engine) == 64


def test_advice() -> None:
    assert "engine.args.extra" in TRTLLM.diagnose("... Extra inputs are not permitted [type=...")
    assert TRTLLM.diagnose("something never seen") == ""


READING = """\
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{model_name="m"} 3.0
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{model_name="m"} 0.25
# TYPE trtllm_prompt_tokens_total counter
trtllm_prompt_tokens_total{model_name="m"} 1200.0
# TYPE trtllm_prompt_cached_tokens_total counter
trtllm_prompt_cached_tokens_total{model_name="m"} 300.0
# TYPE trtllm_time_to_first_token_seconds histogram
trtllm_time_to_first_token_seconds_bucket{model_name="m",le="0.1"} 2.0
trtllm_time_to_first_token_seconds_bucket{model_name="m",le="+Inf"} 5.0
"""


def test_metrics_are_parsed_into_common_names() -> None:
    assert TRTLLM.metrics.path == "/prometheus/metrics"
    assert parse_metrics(READING, TRTLLM.metrics) == EngineMetrics(
        running=3,
        kv_usage=0.25,
        prefix_queries=1200,
        prefix_hits=300,
        prompt_tokens=1200,
        ttft=Histogram.from_cumulative({0.1: 2, float("inf"): 5}),
    )


# Prefill/decode protocol

DIALECT = TrtllmPdProtocol()
BODY: Body = {"model": "m", "prompt": "p", "max_tokens": 50, "temperature": 0, "logprobs": 1}
CHAT: Body = {"model": "m", "messages": [{"role": "user", "content": "p"}]}
USAGE = {"prompt_tokens": 9, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
PARAMS = {
    "request_type": "context_only",
    "first_gen_tokens": [7],
    "ctx_request_id": FIRST_REQUEST_ID + 5,
    "encoded_opaque_state": "c3RhdGU=",
    "draft_tokens": None,
    "of a later version": {"x": None},
}


def answer(params: object = PARAMS, finish: str = "length") -> Body:
    """As the dispatcher reads it: one level deep."""
    whole = {
        "choices": [{"text": "!", "finish_reason": finish, "disaggregated_params": params}],
        "prompt_token_ids": [1, 2, 3],
    }
    return msgspec.json.decode(json.dumps(whole), type=dict[str, msgspec.Raw])


def read(body: Body) -> Body:
    """Return the decoded body."""
    made: Body = json.loads(msgspec.json.encode(body))
    return made


def test_prefill_body_requests_context_only() -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}, "min_tokens": 5, "n": 1}
    asked = [DIALECT.prefill(BODY | more).pop("disaggregated_params") for _ in range(9)]
    assert {one["request_type"] for one in asked} == {"context_only"}
    ids = {one["disagg_request_id"] for one in asked}
    assert len(ids) == 9
    assert all(FIRST_REQUEST_ID <= number < END_REQUEST_ID for number in ids)
    made = DIALECT.prefill(BODY | more)
    del made["disaggregated_params"]
    assert made == {**BODY, "max_tokens": 1, "stream": False}
    assert DIALECT.prefill({**CHAT, "max_completion_tokens": 9})["max_completion_tokens"] == 1
    assert BODY["max_tokens"] == 50, "the request itself was changed"


def test_decode_body_continues_from_context() -> None:
    handed = PARAMS | {"request_type": "generation_only"}
    made = read(DIALECT.decode(BODY, answer()))
    assert made == {**BODY, "prompt": [1, 2, 3], "disaggregated_params": handed}
    made = read(DIALECT.decode(CHAT, answer(finish="not_finished")))
    assert made == {**CHAT, "prompt_token_ids": [1, 2, 3], "disaggregated_params": handed}


def test_location_of_blocks_is_signed() -> None:
    """Both fields are signed, also one that is null (TensorRT-LLM, serve/disagg_auth.py)."""
    body = DIALECT.decode(BODY, answer())
    ((name, value),) = DIALECT.decode_headers(body, "token")
    assert name == b"x-trtllm-disagg-auth"
    text = b'{"ctx_info_endpoint":null,"encoded_opaque_state":"c3RhdGU="}'
    digest = hmac.new(signing_key("token").encode(), text, "sha256").hexdigest()
    assert value == f"sha256={digest}".encode()
    ((_, other),) = DIALECT.decode_headers(body, "another token")
    assert other != value
    located = {"disaggregated_params": {"ctx_info_endpoint": ["tcp://n1:1", "tcp://n2:1"]}}
    first = {"disaggregated_params": {"ctx_info_endpoint": "tcp://n1:1"}}
    assert DIALECT.decode_headers(located, "t") == DIALECT.decode_headers(first, "t") != []
    assert not DIALECT.decode_headers(BODY, "token")
    assert not DIALECT.decode_headers({"disaggregated_params": {"ctx_request_id": 1}}, "token")


def test_simulator_refuses_unsigned_location() -> None:
    key = signing_key("token")
    params = DisaggregatedParams("generation_only", encoded_opaque_state="c3RhdGU=")
    sent = {"encoded_opaque_state": "c3RhdGU="}
    for token, good in (("token", True), ("another", False)):
        headers = {k.decode(): v.decode() for k, v in signature_headers(sent, token)}
        with nullcontext() if good else pytest.raises(RequestRejected, match="Invalid internal"):
            check_signature(params, headers, key)
    with pytest.raises(RequestRejected, match="Invalid internal"):
        check_signature(params, {}, key)
    check_signature(params, {}, "")  # no key in its options file
    check_signature(DisaggregatedParams("context_only"), {}, key)


def test_decode_worker_gets_usage_of_prefill_worker() -> None:
    raw = msgspec.Raw(json.dumps(USAGE).encode())
    made = read(DIALECT.decode(BODY, {**answer(), "usage": raw}))
    assert made["disaggregated_params"]["ctx_usage"] == USAGE
    made = read(DIALECT.decode(BODY, {**answer(), "usage": msgspec.Raw(b"null")}))
    assert "ctx_usage" not in made["disaggregated_params"]


def test_finished_prefill_answer_has_no_transfer() -> None:
    assert DIALECT.decode(BODY, answer(None, "stop")) == BODY


@pytest.mark.parametrize(
    "prefilled", [{}, {"choices": []}, answer(None), answer({"request_type": "context_only"})]
)
def test_prefill_answer_without_transfer_params_is_rejected(prefilled: Body) -> None:
    with pytest.raises(RequestFailed, match="has no disaggregated_params") as failed:
        DIALECT.decode(BODY, prefilled)
    assert failed.value.status == 502
    assert not failed.value.final


@pytest.mark.parametrize("prompt", ["p", ["p"], [1, 2], [[1, 2]], msgspec.Raw(b"[1, 2]"), []])
def test_prompt_forms_are_replaced_by_token_ids(prompt: object) -> None:
    assert "disaggregated_params" in DIALECT.prefill(BODY | {"prompt": prompt, "n": None})


def test_trtllm_has_no_release_body() -> None:
    assert DIALECT.release(DIALECT.decode(BODY, answer())) is None
