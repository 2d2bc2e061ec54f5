"""Commands and prefill/decode protocol of SGLang; contract/ checks its options."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
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
    Task,
    Topology,
    TopologyKind,
)
from hpc_dynamo.config.resolve import with_engine_limits
from hpc_dynamo.engines import (
    ConcurrentProtocol,
    Placement,
    engine,
    is_concurrent,
    pd_protocol_of,
    probe_fields,
)
from hpc_dynamo.engines.environment import INJECTED
from hpc_dynamo.engines.metrics import parse_metrics
from hpc_dynamo.engines.pd_protocol import Body
from hpc_dynamo.engines.sglang.adapter import SGLANG_METRICS
from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from hpc_dynamo.errors import ConfigError, RequestFailed
from hpc_dynamo.topology import Shard, Worker, plan
from tests.support.runs import HANG_S
from tests.unit.engines.test_engines import options

POOL = Pool(workers=1, tensor_parallel=2)
SPLIT = Topology(kind=TopologyKind.disaggregated, prefill=POOL, decode=POOL)
WHOLE = Topology(kind=TopologyKind.aggregated, aggregated=POOL)
CONFIG = Config(
    engine=Engine(name="sglang", args={"mem_fraction_static": 0.8}, env={"A": "1"}),
    model=Model(path="/shared/llama"),
    topology=SPLIT,
    cluster=Cluster(gpus_per_node=4),
)
SIMULATED = replace(CONFIG, engine=Engine(name="simulator", args={"pd-protocol": "sglang"}))


def limited(config: Config) -> Config:
    return with_engine_limits(config, is_concurrent)


def place(role: Role) -> Placement:
    topology = WHOLE if role is Role.aggregated else SPLIT
    sizes = dict(topology.pools)[role].parallel
    worker = Worker(3, role, (Shard(0, (0, 1)),), parallel=sizes)
    return Placement(worker, "10.0.0.7", (5000, 5001), ("2", "3"), "secret-token")


ROLES = {
    Role.aggregated: {},
    Role.prefill: {
        "--disaggregation-mode": "prefill",
        "--disaggregation-transfer-backend": "nixl",
        "--disaggregation-bootstrap-port": "5001",
    },
    Role.decode: {
        "--disaggregation-mode": "decode",
        "--disaggregation-transfer-backend": "nixl",
    },
}


@pytest.mark.parametrize("role", Role)
def test_the_command(role: Role) -> None:
    config = replace(CONFIG, topology=WHOLE) if role is Role.aggregated else CONFIG
    command = engine("sglang").command(config, place(role))
    assert command.argv[:3] == (sys.executable, "-m", "hpc_dynamo_sglang")
    assert options(command) == {
        "--model-path": "/shared/llama",
        "--served-model-name": "llama",
        "--host": "10.0.0.7",
        "--port": "5000",
        "--tp-size": "2",
        "--pp-size": "1",
        "--dp-size": "1",
        "--max-running-requests": "256",
        "--page-size": "16",
        "--enable-metrics": "",
        "--enable-cache-report": "",
        "--mem-fraction-static": "0.8",
        **ROLES[role],
    }
    assert dict(command.env) == {
        "A": "1",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "HPC_DYNAMO_ENGINE_KEY": "secret-token",
        "PYTHONPATH": str(INJECTED),
    }


ON_CPU = {"--device": "cpu", "--sleep-on-idle": "", "--disable-overlap-schedule": ""}
BACKUP = {"--disaggregation-decode-retraction-backup": "cpu_tensor"}


@pytest.mark.parametrize(("role", "added"), [(Role.prefill, {}), (Role.decode, BACKUP)])
def test_disaggregated_cpu_workers_get_cpu_options(role: Role, added: dict[str, str]) -> None:
    config = replace(CONFIG, engine=Engine(name="sglang", device=Device.cpu, env={"A": "1"}))
    engine("sglang").check(config, plan(config))
    command, on_gpu = (engine("sglang").command(c, place(role)) for c in (config, CONFIG))
    changed = {"--mem-fraction-static": ""}  # an option only of CONFIG
    assert options(command).items() - options(on_gpu).items() == (ON_CPU | added).items()
    assert options(on_gpu).keys() - options(command).keys() == changed.keys()
    assert command.env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert command.env["TORCH_COMPILE_DISABLE"] == "1"
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"SGLANG_USE_CPU_ENGINE", "TORCH_COMPILE_DISABLE"} & on_gpu.env.keys()


def test_aggregated_cpu_worker_gets_cpu_options() -> None:
    config = replace(CONFIG, engine=Engine(name="sglang", device=Device.cpu), topology=WHOLE)
    found = options(engine("sglang").command(config, place(Role.aggregated)))
    assert found.items() >= ON_CPU.items()
    assert not found.keys() & BACKUP.keys()


def test_user_options_override_cpu_defaults() -> None:
    own = {"sleep-on-idle": False, "disaggregation_decode_retraction_backup": "none"}
    given = Engine(name="sglang", device=Device.cpu, args=own, env={"SGLANG_USE_CPU_ENGINE": "0"})
    command = engine("sglang").command(replace(CONFIG, engine=given), place(Role.decode))
    found = options(command)
    assert "--sleep-on-idle" not in found
    assert found["--disaggregation-decode-retraction-backup"] == "none"
    assert command.env["SGLANG_USE_CPU_ENGINE"] == "0"


def test_user_options_override_generated_sglang_options() -> None:
    args = {"page_size": 64, "ep-size": 2, "enable-metrics": False}
    config = replace(CONFIG, engine=replace(CONFIG.engine, args=args))
    found = options(engine("sglang").command(config, place(Role.decode)))
    assert (found["--page-size"], found["--ep-size"]) == ("64", "2")
    assert not {"--enable-metrics", "--no-enable-metrics"} & found.keys()
    assert engine("sglang").block_tokens(config.engine) == 64


def test_token_reaches_sglang_inside_process(tmp_path: Path) -> None:
    """An SGLang that prints how it was called, and that it is the program."""
    (tmp_path / "sglang").mkdir()
    says = "import sys\nif __name__ == '__main__':\n    print(sys.argv[1:], __spec__.name)\n"
    (tmp_path / "sglang" / "launch_server.py").write_text(says)
    command = engine("sglang").command(CONFIG, place(Role.prefill))
    path = f"{command.env['PYTHONPATH']}:{tmp_path}"
    env = {**os.environ, **command.env, "PYTHONPATH": path}
    done = subprocess.run(command.argv, env=env, capture_output=True, text=True, timeout=HANG_S)
    words = [*command.argv[3:], "--api-key", "secret-token"]
    assert done.stdout == f"{words} sglang.launch_server\n", done.stderr


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": Model()}, "model.path is not set"),
        ({"engine": Engine(name="sglang", args={"tokenizer_worker_num": 2})}, "checks no key"),
        ({"task": Task.profile}, "each worker by itself"),
        ({"engine": Engine(name="sglang", args={"page-size": 1})}, "does not divide"),
    ],
)
def test_unsupported_sglang_settings_are_rejected(change: dict[str, Any], what: str) -> None:
    config = replace(CONFIG, **change)
    with pytest.raises(ConfigError, match=what):
        engine("sglang").check(config, plan(config))
    engine("sglang").check(CONFIG, plan(CONFIG))


@pytest.mark.parametrize("name", ["attn-dp-size", "attention_data_parallel_size"])
def test_ranks_of_attention_have_endpoints_of_their_own(name: str) -> None:
    where = replace(place(Role.prefill), events_folder="/tmp/x")
    of_attention = replace(CONFIG, engine=Engine(name="sglang", args={name: 2}))
    for config, ranks in ((CONFIG, 1), (of_attention, 2)):
        endpoints = engine("sglang").event_endpoints(config, where)
        assert endpoints
        assert len(endpoints.by_rank()) == ranks


PAGE = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{tp_rank="0"} 3.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{tp_rank="0"} 2.0
# TYPE sglang:token_usage gauge
sglang:token_usage{tp_rank="0"} 0.25
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m"} 100.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device"} 30.0
sglang:cached_tokens_total{cache_source="host"} 10.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="m"} 7.0
# TYPE sglang:kv_transfer_total_mb histogram
sglang:kv_transfer_total_mb_bucket{le="+Inf"} 24.0
sglang:kv_transfer_total_mb_count 24.0
sglang:kv_transfer_total_mb_sum 98.4375
# TYPE sglang:max_total_num_tokens gauge
sglang:max_total_num_tokens{tp_rank="0"} 16384.0
# TYPE sglang:num_transfer_failed_reqs_total counter
sglang:num_transfer_failed_reqs_total{tp_rank="0"} 2.0
sglang:num_transfer_failed_reqs_total{tp_rank="1"} 1.0
"""


def test_metrics() -> None:
    found = parse_metrics(PAGE, SGLANG_METRICS)
    assert (found.running, found.waiting, found.kv_usage) == (3, 2, 0.25)
    assert (found.prefix_queries, found.prefix_hits) == (100, 40)
    assert (found.prompt_tokens, found.generation_tokens) == (100, 7)
    assert found.kv_bytes == 140 * 16 * 46080, "140 pages of 16 tokens of SmolLM2-135M in float32"
    assert found.kv_tokens == 16384
    assert found.kv_failures == 3


# Prefill/decode protocol

BODY: Body = {"prompt": "p", "max_tokens": 5, "stream": True, "stream_options": {}}


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://10.0.0.7:5000", "10.0.0.7"), ("http://[fd00::7]:5000", "fd00::7")],
)
def test_both_bodies_have_bootstrap_room(url: str, host: str) -> None:
    told = {"disaggregation_bootstrap_port": msgspec.Raw(b"8998"), "version": msgspec.Raw(b'"x"')}
    prefill, decode = SglangPdProtocol().worker_bodies(BODY, url, told, 2**63 - 1)
    met = {"bootstrap_host": host, "bootstrap_port": 8998, "bootstrap_room": 2**63 - 1}
    assert decode == BODY | met
    assert prefill == {"prompt": "p", "max_tokens": 5} | met


def test_prefill_worker_without_bootstrap_port_is_rejected() -> None:
    with pytest.raises(RequestFailed, match="reports no disaggregation_bootstrap_port"):
        SglangPdProtocol().worker_bodies(BODY, "http://10.0.0.7:5000", {}, 1)


def test_probe_uses_fake_bootstrap_host() -> None:
    met = {"bootstrap_host": "2.2.2.2", "bootstrap_room": 0}
    assert probe_fields(pd_protocol_of(CONFIG.engine), Role.prefill) == met
    assert probe_fields(pd_protocol_of(CONFIG.engine), Role.aggregated) == {}
    assert probe_fields(pd_protocol_of(Engine(name="vllm")), Role.decode) == {}


def test_simulator_uses_configured_pd_protocol() -> None:
    assert isinstance(pd_protocol_of(SIMULATED.engine), ConcurrentProtocol)
    assert not isinstance(pd_protocol_of(Engine(name="simulator")), ConcurrentProtocol)
    odd = replace(CONFIG, engine=Engine(name="simulator", args={"pd-protocol": "sglan"}))
    with pytest.raises(ConfigError, match=r"engine\.args\.pd-protocol") as refused:
        pd_protocol_of(odd.engine)
    assert "did you mean 'sglang'?" in refused.value.hint
    adapter = engine("simulator")
    found = options(adapter.command(SIMULATED, place(Role.prefill)))
    assert (found["--pd-protocol"], found["--disaggregation-bootstrap-port"]) == ("sglang", "5001")
    given = options(adapter.command(SIMULATED, place(Role.decode)))
    assert "--disaggregation-bootstrap-port" not in given


def test_concurrent_protocol_disables_conditional_disaggregation() -> None:
    assert not limited(CONFIG).router.conditional_disaggregation
    assert not limited(SIMULATED).router.conditional_disaggregation
    assert limited(replace(CONFIG, topology=WHOLE)).router.conditional_disaggregation
    assert limited(replace(CONFIG, engine=Engine(name="vllm"))).router.conditional_disaggregation
