"""Commands, prefill/decode protocol and metrics of vLLM and the simulator."""

import json
import math
import sys
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import (
    Cluster,
    Config,
    Device,
    Engine,
    KvLoadFailurePolicy,
    Model,
    ParallelSizes,
    Policy,
    Pool,
    Role,
    Router,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import ENGINES, EngineCommand, EventEndpoints, Placement, engine
from hpc_dynamo.engines.environment import INJECTED
from hpc_dynamo.engines.metrics import EngineMetrics, parse_metrics
from hpc_dynamo.engines.options import command_line
from hpc_dynamo.engines.vllm.adapter import VLLM_METRICS
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.errors import ConfigError, RequestFailed
from hpc_dynamo.histogram import Histogram
from hpc_dynamo.topology import Shard, Worker, plan

SPLIT = Topology(
    kind=TopologyKind.disaggregated,
    prefill=Pool(workers=1, tensor_parallel=2),
    decode=Pool(workers=1, tensor_parallel=1, pipeline_parallel=2),
)
ONE_EACH = Topology(
    kind=TopologyKind.disaggregated, prefill=Pool(workers=1), decode=Pool(workers=1)
)
CONFIG = Config(
    engine=Engine(name="vllm", args={"max_model_len": 2048}, env={"A": "1"}),
    model=Model(path="/shared/it's a model/llama"),
    topology=SPLIT,
    cluster=Cluster(gpus_per_node=4),
)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, []),
        ({"max-model-len": 2048}, ["--max-model-len", "2048"]),
        ({"max_model_len": 2048}, ["--max-model-len", "2048"]),
        ({"enforce-eager": True}, ["--enforce-eager"]),
        ({"enable-prefix-caching": False}, ["--no-enable-prefix-caching"]),
        ({"quantization": None}, []),
        ({"a": {"b": {"c": None}}}, ["--a", '{"b": {"c": null}}']),
        ({"a": {}}, ["--a", "{}"]),
        ({"a": [1, "b c"]}, ["--a", "1", "b c"]),
        ({"allowed-origins": '["*"]'}, ["--allowed-origins", '["*"]']),
        ({"a": '{"b":1.10}', "c": "[1.10, 2]"}, ["--a", '{"b":1.10}', "--c", "[1.10, 2]"]),
        ({"served_model_name": '["a","b c"]'}, ["--served-model-name", "a", "b c"]),
        ({"bucket-e2e-request-latency": "[1.10,2]"}, ["--bucket-e2e-request-latency", "1.10", "2"]),
        ({"lora-modules": '[{"name": "a"}]'}, ["--lora-modules", '{"name": "a"}']),
        ({"served-model-name": "[x"}, ["--served-model-name", "[x"]),
        ({"served-model-name": "a"}, ["--served-model-name", "a"]),
        ({"a": 0.5, "b": ""}, ["--a", "0.5", "--b", ""]),
        ({"a": 0, "b": 1}, ["--a", "0", "--b", "1"]),  # numbers, although 0 == False
    ],
)
def test_flags(args: dict[str, Any], expected: list[str]) -> None:
    assert command_line(args) == expected


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_json_option_reaches_engine_unchanged(name: str) -> None:
    typed = {"allowed-origins": '["*"]', "hf-overrides": '{"a":1.10,"b":"é"}', "x": "[ 1.10,2 ]"}
    words = [f"engine.args.{option}={text}" for option, text in typed.items()]
    config = compose([*words, f"engine={name}", "model.path=/m", "cluster.gpus_per_node=1"])
    found = options(engine(name).command(config, place(Role.decode, "0")))
    assert {option: found[f"--{option}"] for option in typed} == typed


def test_json_option_is_merged_into_kv_transfer_config() -> None:
    words = ('engine.args.kv-transfer-config={"kv_port":7}', "model.path=/m", "engine=vllm")
    config = compose([*words, "cluster.gpus_per_node=1"])
    engine("vllm").check(config, plan(config))
    found = options(engine("vllm").command(config, place(Role.decode, "0")))
    sent = json.loads(found["--kv-transfer-config"])
    assert sent == {**LEASE, "kv_role": "kv_consumer", "kv_port": 7}


def test_own_extra_config_of_connector_keeps_the_lease() -> None:
    own = "engine.args.kv-transfer-config.kv_connector_extra_config"
    words = (f'{own}.backends=["LIBFABRIC"]', "model.path=/m", "engine=vllm")
    config = compose([*words, "cluster.gpus_per_node=1"])
    found = options(engine("vllm").command(config, place(Role.decode, "0")))
    sent = json.loads(found["--kv-transfer-config"])
    extra = {"backends": ["LIBFABRIC"], "kv_lease_duration": 300}
    assert sent["kv_connector_extra_config"] == extra


def place(role: Role, *gpus: str) -> Placement:
    sizes = getattr(SPLIT, role).parallel
    worker = Worker(3, role, (Shard(0, tuple(range(len(gpus)))),), parallel=sizes)
    return Placement(worker, "10.0.0.7", (5000, 5001), gpus, "secret-token")


def options(command: EngineCommand) -> dict[str, str]:
    """The long options of a command; a bare flag has an empty value."""
    words = list(command.argv[3:])
    found: dict[str, str] = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            assert word not in found, f"{word} is there twice"
            value = words[i + 1] if i + 1 < len(words) else ""
            found[word] = "" if value.startswith("--") else value
    return found


WITHOUT_KEY = {"trtllm"}
# Engines that publish KV events.
PUBLISHING = sorted(ENGINES.keys() - {"trtllm"})

LEASE = {
    "kv_connector": "NixlConnector",
    "kv_connector_extra_config": {"kv_lease_duration": 300},
    "kv_load_failure_policy": "recompute",
}


@pytest.mark.parametrize(
    ("role", "tensor", "pipeline", "transfer"),
    [
        (Role.prefill, "2", "1", {**LEASE, "kv_role": "kv_producer"}),
        (Role.decode, "1", "2", {**LEASE, "kv_role": "kv_consumer"}),
    ],
)
def test_vllm_command_of_disaggregated_topology(
    role: Role, tensor: str, pipeline: str, transfer: dict[str, object]
) -> None:
    command = engine("vllm").command(CONFIG, place(role, "2", "3"))
    assert command.argv[:3] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    given = options(command)
    assert json.loads(given.pop("--kv-transfer-config")) == transfer
    assert given == {
        "--model": "/shared/it's a model/llama",
        "--served-model-name": "llama",
        "--host": "10.0.0.7",
        "--port": "5000",
        "--tensor-parallel-size": tensor,
        "--pipeline-parallel-size": pipeline,
        "--data-parallel-size": "1",
        "--max-num-seqs": "256",
        "--middleware": "hpc_dynamo_auth.BearerTokenAuth",
        "--enable-prompt-tokens-details": "",
        "--enable-request-id-headers": "",
        "--max-model-len": "2048",
    }
    assert dict(command.env) == {
        "A": "1",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "PYTHONPATH": str(INJECTED),
        "VLLM_API_KEY": "secret-token",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.7",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "5001",
        "VLLM_NO_USAGE_STATS": "1",
    }


def test_vllm_on_cpu_hides_gpus_and_uses_host_buffers() -> None:
    config = replace(CONFIG, engine=Engine(device=Device.cpu))
    command = engine("vllm").command(config, place(Role.prefill))
    assert json.loads(options(command)["--kv-transfer-config"])["kv_buffer_device"] == "cpu"
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""


def test_aggregated_vllm_has_no_kv_transfer() -> None:
    config = replace(CONFIG, topology=Topology(aggregated=Pool(workers=1)))
    words = engine("vllm").command(config, place(Role.aggregated, "0")).argv
    assert "--kv-transfer-config" not in words


@pytest.mark.parametrize("wanted", list(KvLoadFailurePolicy))
def test_kv_load_failure_policy_reaches_engine(wanted: KvLoadFailurePolicy) -> None:
    for name, flag in (("vllm", "--kv-transfer-config"), ("simulator", "--kv-load-failure-policy")):
        config = replace(CONFIG, engine=Engine(name=name, kv_load_failure_policy=wanted))
        found = options(engine(name).command(config, place(Role.decode, "0")))[flag]
        assert found == wanted or json.loads(found)["kv_load_failure_policy"] == wanted
    spoken = Engine(name="simulator", args={"pd-protocol": "sglang"})
    command = engine("simulator").command(replace(CONFIG, engine=spoken), place(Role.decode))
    assert options(command)["--kv-load-failure-policy"] == "fail"


@pytest.mark.parametrize("name", ["sglang", "trtllm"])
def test_engines_without_recompute_reject_it(name: str) -> None:
    own, router = (
        Engine(name=name, kv_load_failure_policy=KvLoadFailurePolicy.recompute),
        Router(kv_events=False),
    )
    config = replace(CONFIG, engine=own, router=router, topology=ONE_EACH)
    with pytest.raises(ConfigError, match="kv_load_failure_policy=recompute"):
        engine(name).check(config, plan(config))
    config = replace(config, engine=replace(own, kv_load_failure_policy=KvLoadFailurePolicy.fail))
    engine(name).check(config, plan(config))


def test_sleep_mode_sets_options_and_endpoints() -> None:
    config = replace(CONFIG, engine=Engine(sleep_mode=True), topology=ONE_EACH)
    command = engine("vllm").command(config, place(Role.decode, "0"))
    assert "--enable-sleep-mode" in options(command)
    assert command.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in engine("vllm").command(CONFIG, place(Role.decode)).env
    cpu = replace(config, engine=Engine(sleep_mode=True, device=Device.cpu))
    for name, unfit in (("vllm", cpu), ("trtllm", replace(config, router=Router(kv_events=False)))):
        with pytest.raises(ConfigError, match=r"engine\.sleep_mode=true"):
            engine(name).check(unfit, plan(config))
    command = engine("sglang").command(config, place(Role.decode, "0"))
    assert {"--enable-memory-saver", "--enable-weights-cpu-backup"} <= options(command).keys()
    asleep = [engine(name).sleep_endpoints(config.engine) for name in sorted(ENGINES)]
    assert [naps is None for naps in asleep] == [False, False, True, False]
    assert engine("vllm").sleep_endpoints(CONFIG.engine) is None


@pytest.mark.parametrize("version", ["0.32", "0.32.0", "0.9.1"])
def test_sleep_with_kv_transfers_needs_vllm_that_registers_memory_again(version: str) -> None:
    old = replace(CONFIG, engine=Engine(sleep_mode=True, version=version), topology=ONE_EACH)
    with pytest.raises(ConfigError, match=r"engine\.sleep_mode=true: vLLM 0\.\d+") as refused:
        engine("vllm").check(old, plan(old))
    assert "engine.version=0.33" in refused.value.hint
    new = [Engine(sleep_mode=True, version=other) for other in ("", "0.33.1", "1.0")]
    for own in (*new, Engine(version=version)):
        engine("vllm").check(replace(old, engine=own), plan(old))
    assert engine("vllm").sleep_obstacle(old.engine, Role.aggregated) == ""


@pytest.mark.parametrize("spelling", ["kv-transfer-config", "kv_transfer_config"])
def test_user_options_override_generated_vllm_options(spelling: str) -> None:
    mine = {"kv_buffer_size": 1e9, "kv_role": "kv_both"}
    given = {spelling: mine, "max_num_seqs": 7, "port": 1}
    config = replace(CONFIG, engine=Engine(args=given, python="/env/bin/python"))
    command = engine("vllm").command(config, place(Role.decode, "0"))
    assert command.argv[0] == "/env/bin/python"
    found = options(command)
    assert (found["--max-num-seqs"], found["--port"]) == ("7", "1")
    assert json.loads(found["--kv-transfer-config"]) == {**LEASE, **mine}


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_token_is_in_environment_only(name: str) -> None:
    """All users of a node can read command lines."""
    for role in (Role.prefill, Role.decode):
        command = engine(name).command(CONFIG, place(role, "0"))
        assert not any("secret-token" in word for word in (*command.argv, *command.files.values()))
        assert ("secret-token" in command.env.values()) is (name not in WITHOUT_KEY)


def test_simulator_command() -> None:
    config = replace(
        CONFIG,
        engine=Engine(name="simulator", max_num_seqs=5, args={"timing": "h100-8b"}, env={"A": "1"}),
    )
    command = engine("simulator").command(config, place(Role.decode))
    assert command.argv[:3] == (sys.executable, "-m", "hpc_dynamo.simulator")
    assert options(command) == {
        "--host": "10.0.0.7",
        "--port": "5000",
        "--enable-prompt-tokens-details": "",
        "--model": "llama",
        "--role": "decode",
        "--max-num-seqs": "5",
        "--timing": "h100-8b",
        "--kv-load-failure-policy": "recompute",
    }
    mine = {"A": "1", "CUDA_VISIBLE_DEVICES": "", "HPC_DYNAMO_ENGINE_KEY": "secret-token"}
    # The job is on a network, so UCX may choose; a job on loopback is held to it.
    assert {**dict(command.env), **mine} == dict(command.env)


KV_EVENTS = {
    "enable_kv_cache_events": True,
    "publisher": "zmq",
    "endpoint": "ipc:///tmp/x/3",
    "replay_endpoint": "ipc:///tmp/x/3r",
    "buffer_steps": 900,
}


@pytest.mark.parametrize("name", PUBLISHING)
def test_kv_events_use_private_folder(name: str) -> None:
    adapter, where = engine(name), replace(place(Role.prefill, "0"), events_folder="/tmp/x")
    published = options(adapter.command(CONFIG, where))["--kv-events-config"]
    assert json.loads(published) == KV_EVENTS
    assert adapter.event_endpoints(CONFIG, where) == EventEndpoints(
        "ipc:///tmp/x/3", "ipc:///tmp/x/3r"
    )


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize(
    "router",
    [
        Router(kv_events=False),
        Router(policy=Policy.least_loaded),
        Router(policy=Policy.round_robin),
    ],
)
def test_kv_events_are_off_if_router_does_not_read_them(name: str, router: Router) -> None:
    adapter, where = engine(name), replace(place(Role.prefill, "0"), events_folder="/tmp/x")
    config = replace(CONFIG, router=router)
    assert adapter.event_endpoints(config, where) is None
    assert "--kv-events-config" not in adapter.command(config, where).argv
    assert adapter.event_endpoints(CONFIG, replace(where, events_folder="")) is None


@pytest.mark.parametrize("name", PUBLISHING)
@pytest.mark.parametrize("spelling", ["kv-events-config", "kv_events_config"])
def test_kv_events_config_of_user_disables_event_endpoints(name: str, spelling: str) -> None:
    mine = {"enable_kv_cache_events": True, "endpoint": "tcp://*:5557"}
    config = replace(CONFIG, engine=replace(CONFIG.engine, args={spelling: mine}))
    where = replace(place(Role.prefill, "0"), events_folder="/tmp/x")
    assert engine(name).event_endpoints(config, where) is None
    assert json.loads(options(engine(name).command(config, where))["--kv-events-config"]) == mine


@pytest.mark.parametrize("name", ["sglang", "vllm"])
def test_each_data_parallel_rank_has_endpoints_in_the_private_folder(name: str) -> None:
    """The engines append the suffix if the name contains inproc, and refuse other ipc endpoints."""
    where = replace(place(Role.prefill), events_folder="/tmp/x")
    where = replace(where, worker=replace(where.worker, parallel=ParallelSizes(data=3)))
    config = replace(CONFIG, engine=replace(CONFIG.engine, name=name))
    endpoints = engine(name).event_endpoints(config, where)
    assert endpoints
    published = json.loads(options(engine(name).command(config, where))["--kv-events-config"])
    assert published["endpoint"] == "ipc:///tmp/x/inproc-3"
    assert {rank: (own.live, own.replay) for rank, own in endpoints.by_rank().items()} == {
        0: ("ipc:///tmp/x/inproc-3", "ipc:///tmp/x/inproc-3r"),
        1: ("ipc:///tmp/x/inproc-3_dp1", "ipc:///tmp/x/inproc-3r_dp1"),
        2: ("ipc:///tmp/x/inproc-3_dp2", "ipc:///tmp/x/inproc-3r_dp2"),
    }
    shards = (Shard(0, (0, 1)), Shard(1, (0,)), Shard(2, ()))
    spread = replace(where, worker=replace(where.worker, shards=shards))
    each = [engine(name).event_endpoints(config, replace(spread, shard_index=i)) for i in range(3)]
    assert [own and own.dp_ranks for own in each] == [(0, 1), (2,), None]


@pytest.mark.parametrize(
    ("name", "device", "args", "tokens"),
    [
        ("vllm", Device.cuda, {}, 16),
        ("vllm", Device.cpu, {}, 128),
        ("vllm", Device.cpu, {"block-size": 32}, 32),
        ("vllm", Device.cuda, {"block_size": "64"}, 64),
        ("simulator", Device.cpu, {}, 16),
        ("simulator", Device.cpu, {"block_size": 8}, 8),
    ],
)
def test_tokens_of_a_kv_block(name: str, device: Device, args: dict[str, Any], tokens: int) -> None:
    config = replace(CONFIG, engine=Engine(name=name, device=device, args=args))
    assert engine(name).block_tokens(config.engine) == tokens


@pytest.mark.parametrize(("own", "fits"), [(8, True), (16, True), (12, False), (32, False)])
def test_router_block_size_must_divide_engine_block_size(own: int, fits: bool) -> None:
    flat = replace(SPLIT, decode=Pool(1))
    config = replace(CONFIG, topology=flat, router=Router(block_tokens=own))
    if fits:
        engine("vllm").check(config, plan(config))
        return
    with pytest.raises(ConfigError, match=f"block_tokens={own} does not divide") as refused:
        engine("vllm").check(config, plan(config))
    assert refused.value.hint == "router.block_tokens=16"
    guessing = replace(config, router=replace(config.router, kv_events=False))
    engine("vllm").check(guessing, plan(guessing))


def test_vllm_without_model_path_is_rejected() -> None:
    config = replace(CONFIG, model=Model())
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        engine("vllm").check(config, plan(config))


def test_unknown_engine_error_lists_known_engines() -> None:
    with pytest.raises(ConfigError, match=r"engine\.name='vlm' is not known") as refused:
        engine("vlm")
    assert refused.value.hint == "did you mean 'vllm'? known: sglang, simulator, trtllm, vllm"


ODD: list[Any] = ["none", "16x", 0, -1, 1.5, True, [1], {"a": 1}]
COUNTS = [
    ("vllm", "block-size"),
    ("simulator", "block_size"),
    ("sglang", "page-size"),
    ("sglang", "tokenizer-worker-num"),
    ("sglang", "attn-dp-size"),
]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(("name", "option"), COUNTS)
def test_counted_option_must_be_positive_integer(name: str, option: str, value: Any) -> None:
    flat = replace(SPLIT, decode=Pool(1))
    config = replace(CONFIG, topology=flat, engine=Engine(name=name, args={option: value}))
    known = option.replace("_", "-")
    with pytest.raises(ConfigError, match=f"engine.args.{known}=.* above zero") as refused:
        engine(name).check(config, plan(config))
    assert refused.value.hint.startswith(f"engine.args.{known}=")
    right = replace(config, engine=Engine(name=name, args={option: "16" if "size" in known else 1}))
    engine(name).check(right, plan(right))


def test_kv_transfer_config_must_be_mapping() -> None:
    config = replace(CONFIG, engine=Engine(name="vllm", args={"kv-transfer-config": 5}))
    with pytest.raises(ConfigError, match=r"engine\.args\.kv-transfer-config=5 must be a mapping"):
        engine("vllm").check(config, plan(config))


def staged(name: str, prefill: int, decode: int, **args: Any) -> Config:
    pools = (Pool(1, pipeline_parallel=stages) for stages in (prefill, decode))
    split = Topology(TopologyKind.disaggregated, None, Pool(), *pools)
    return replace(CONFIG, engine=Engine(name=name, args=args), topology=split)


@pytest.mark.parametrize(
    ("config", "role"),
    [
        (staged("vllm", 2, 1), "prefill"),
        (staged("vllm", 1, 2), "decode"),
        (staged("vllm", 2, 2), "prefill"),
        (staged("sglang", 1, 2), "decode"),
        (staged("sglang", 4, 2), "decode"),
    ],
)
def test_disaggregated_pipeline_with_nixl_is_rejected(config: Config, role: str) -> None:
    with pytest.raises(ConfigError, match=rf"topology\.{role}\.pipeline_parallel=2") as refused:
        engine(config.engine.name).check(config, plan(config))
    assert f"topology.{role}.pipeline_parallel=1" in refused.value.hint


OTHER = {"kv-transfer-config": {"kv_connector": "NixlPushConnector"}}


@pytest.mark.parametrize(
    "config", [staged("vllm", 2, 1, **OTHER), staged("sglang", 2, 1), staged("sglang", 2, 2)]
)
def test_other_pipelines_are_accepted(config: Config) -> None:
    engine(config.engine.name).check(config, plan(config))


# Messages of each engine, or of its libraries, for the five most common failures.
SAID = {
    "GPUs per worker": ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"],
    "a restart picks a new one": [
        "[Errno 98] error while attempting to bind on address: address already in use",
        "OSError: [Errno 98] Address already in use",
        "(errno: 98 - Address already in use). EADDRINUSE",
    ],
    "model.path must be a folder": [
        "HFValidationError: Repo id must be in the form 'repo_name'",
        "OSError: /nowhere is not a local folder and is not a valid model identifier",
    ],
    "accept the model's terms": [
        "OSError: You are trying to access a gated repo.",
        "Cannot access gated repo for url https://huggingface.co/api/models/org/name.",
    ],
    "a private one needs `hf auth login`": [
        "401 Client Error. (Request ID: x)\n\nRepository Not Found for url: https://hub/org/name",
    ],
    "engine.args.revision": [
        "Revision Not Found for url: https://huggingface.co/org/name/resolve/v9/config.json.",
        "OSError: v9 is not a valid git identifier (branch name, tag name or commit id)",
    ],
    "on a machine with internet access": [
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
        "huggingface_hub.errors.LocalEntryNotFoundError: Got: ConnectError: [Errno 111]",
        "LocalEntryNotFoundError: Cannot find the requested files in the disk cache and outgoing "
        "traffic has been disabled.",
        "Cannot reach https://huggingface.co/api/models/org/name: offline mode is enabled.",
    ],
    "damaged or a Git LFS pointer": [
        "SafetensorError: Error while deserializing header: header too large",
    ],
    "NCCL_SOCKET_IFNAME": [
        "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1",
        "RuntimeError: NCCL error: unhandled system error",
    ],
    "GPU's architecture": ["CUDA error: no kernel image is available for execution on the device"],
}
EACH = [(said, advice) for advice, each in SAID.items() for said in each]


@pytest.mark.parametrize("name", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(("said", "advice"), EACH)
def test_common_failures_have_hints_for_every_engine(name: str, said: str, advice: str) -> None:
    assert advice in engine(name).diagnose(f"...\n{said}\n...")
    assert engine(name).diagnose("something never seen") == ""


OWN = [
    ("vllm", "Free memory on device cuda:0 (9.0/80.0 GiB) on startup is less than desired GPU "
             "memory utilization (0.9, 72.0 GiB).", "gpu-memory-utilization=0.8"),
    ("vllm", "No available memory for the cache blocks. Try", "a larger engine.args.gpu"),
    ("vllm", "GiB KV cache is needed, which is larger than the available KV cache memory",
     "max-model-len"),
    ("vllm", "Invalid repository ID or local directory specified: '/x'", "model.path"),
    ("vllm", "RuntimeError: Insufficient space in /dev/shm for CPU KV offload shared region in "
             "/dev/shm: 65536 MiB required, 31000 MiB free.", "smaller engine.kv_host_cache_gb"),
    ("vllm", "Bfloat16 is only supported on GPUs with compute capability of at least 8.0", "dtype"),
    ("sglang", "Not enough memory. Please try to increase --mem-fraction-static.", "larger engine"),
    ("sglang", "ValueError: Not enough host memory available. Requesting 68.00 GB but only have "
               "20.00 GB free.", "smaller engine.kv_host_cache_gb"),
    ("sglang", "ValueError: Port is already in use. dist_init_port=5000", "a restart picks"),
    ("sglang", "RuntimeError: SGLang only supports sm75 and above.", "a newer GPU"),
    ("trtllm", "Executor creation failed due to insufficient GPU memory.", "max_num_tokens"),
    ("trtllm", "CUDA runtime error in ::cudaMallocAsync: out of memory", "free_gpu_memory"),
    ("trtllm", "RuntimeError: Failed to bind socket to 10.0.0.5:8000", "a restart picks"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said", "advice"), OWN)
def test_failures_of_one_engine_have_hints(name: str, said: str, advice: str) -> None:
    assert advice in engine(name).diagnose(said)


# Prefill and decode over NIXL

BODY = {"model": "m", "prompt": "p", "max_tokens": 50, "temperature": 0, "seed": 3}


def test_prefill_body_requests_one_token_and_kv_transfer() -> None:
    body = VllmPdProtocol().prefill(BODY)
    assert body == {
        **BODY,
        "max_tokens": 1,
        "stream": False,
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        },
    }
    assert BODY["max_tokens"] == 50, "the request itself was changed"


def test_prefill_body_drops_fields_of_longer_answers() -> None:
    more = {"max_completion_tokens": 9, "min_tokens": 5}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    body = VllmPdProtocol().prefill({"prompt": "p", **more, **stream})
    body.pop("kv_transfer_params")
    assert body == {"prompt": "p", "max_completion_tokens": 1, "stream": False}


def test_decode_body_has_unchanged_transfer_params() -> None:
    handed = {"remote_engine_id": "e", "remote_block_ids": [1, 2], "new": {"x": None}}
    body = VllmPdProtocol().decode(BODY, {"choices": [], "kv_transfer_params": handed})
    assert body == {**BODY, "kv_transfer_params": handed}


def test_decode_body_without_transfer_is_unchanged() -> None:
    """vLLM answers so to a beam search."""
    for none in (None, msgspec.Raw(b"null")):
        assert VllmPdProtocol().decode(BODY, {"kv_transfer_params": none}) == BODY


@pytest.mark.parametrize("prefilled", [{}, {"choices": []}])
def test_prefill_answer_without_transfer_params_is_rejected(prefilled: dict[str, Any]) -> None:
    with pytest.raises(RequestFailed, match="has no kv_transfer_params") as failed:
        VllmPdProtocol().decode(BODY, prefilled)
    assert failed.value.status == 502
    assert not failed.value.final


# Metrics

READING = """\
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0"} 1200.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 340.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.5"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf"} 1.0
# TYPE vllm:nixl_bytes_transferred histogram
vllm:nixl_bytes_transferred_bucket{engine="0",le="+Inf"} 2.0
vllm:nixl_bytes_transferred_sum{engine="0"} 8.4e+06
vllm:nixl_bytes_transferred_count{engine="0"} 2.0
# TYPE vllm:nixl_num_failed_transfers_total counter
vllm:nixl_num_failed_transfers_total{engine="0"} 2.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0
"""


def test_metrics_are_parsed_into_common_names() -> None:
    assert parse_metrics(READING, VLLM_METRICS) == EngineMetrics(
        running=5,
        waiting=1,
        kv_usage=0.25,
        prompt_tokens=1200,
        generation_tokens=340,
        kv_bytes=8.4e6,
        kv_failures=2,
        kv_tokens=65536,
        ttft=Histogram.from_cumulative({0.1: 3, 0.5: 5, math.inf: 6}),
    )


def test_missing_metrics_are_zero_and_kv_bytes_may_be_counter() -> None:
    text = "# TYPE vllm:nixl_bytes_transferred counter\nvllm:nixl_bytes_transferred_total 7\n"
    assert parse_metrics(text, VLLM_METRICS) == EngineMetrics(kv_bytes=7)
