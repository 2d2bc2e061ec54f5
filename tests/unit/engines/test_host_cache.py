"""`engine.kv_host_cache_gb`, and vLLM's KV connectors below a MultiConnector."""

import json
from dataclasses import replace
from typing import Any

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines import ENGINES, Placement, check, engine
from hpc_dynamo.engines.contract import contracts
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch.resources import required_resources
from hpc_dynamo.topology import plan
from tests.unit.engines.contract.accepted import rejected
from tests.unit.engines.test_engines import options

GIB = 2**30
SPLIT = ("topology=disaggregated", "cluster.gpus_per_node=8", "model.path=/m")
WHOLE = ("topology=aggregated", "cluster.gpus_per_node=1", "model.path=/m")
CPU = ("topology=aggregated", "engine=vllm-cpu", "model.path=/m")
TRANSFER = "engine.args.kv-transfer-config"


def cache(gib: float, **more: Any) -> dict[str, Any]:
    extra = {"cpu_bytes_to_use": int(gib * GIB), "self_describing_kv_events": True, **more}
    return connector("OffloadingConnector", "kv_both", **extra)


def connector(name: str, role: str, **extra: Any) -> dict[str, Any]:
    return {"kv_connector": name, "kv_role": role, "kv_connector_extra_config": extra}


def nixl(role: str, **extra: Any) -> dict[str, Any]:
    entry = connector("NixlConnector", role, kv_lease_duration=300, **extra)
    return {**entry, "kv_load_failure_policy": "recompute"}


def found(config: Config) -> dict[Role, dict[str, str]]:
    """Return the options of a worker of each role, after all checks before submission."""
    layout = plan(config)
    check(config, layout)
    places = [
        Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "token", "/tmp/x", log_folder="/logs")
        for worker in layout.workers
    ]
    adapter = engine(config.engine.name)
    return {p.worker.role: options(adapter.command(config, p)) for p in places}


def transfers(*words: str, **args: Any) -> dict[Role, Any]:
    config = compose(list(words))
    config = replace(config, engine=replace(config.engine, args={**config.engine.args, **args}))
    texts = {role: each.get("--kv-transfer-config") for role, each in found(config).items()}
    return {role: text and json.loads(text) for role, text in texts.items()}


def test_host_cache_is_below_nixl_with_role_and_lease() -> None:
    sizes = ("topology.prefill.tensor_parallel=2", "topology.decode.data_parallel=2")
    both = transfers(*SPLIT, *sizes, "engine.kv_host_cache_gb=64")
    for role, kv_role, gib in (
        (Role.prefill, "kv_producer", 128),
        (Role.decode, "kv_consumer", 64),
    ):
        entries = [nixl(kv_role), cache(gib)]
        expected = connector("MultiConnector", kv_role, connectors=entries)
        assert both[role] == {**expected, "kv_load_failure_policy": "recompute"}


def test_changing_roles_are_in_the_nested_entry() -> None:
    (one, _) = transfers(*SPLIT, "planner=load", "engine.kv_host_cache_gb=1").values()
    assert [one["kv_role"], one["kv_connector_extra_config"]["connectors"][0]["kv_role"]] == [
        "kv_both",
        "kv_both",
    ]


def test_settings_of_the_user_are_those_of_nixl() -> None:
    backends = f'{TRANSFER}.kv_connector_extra_config.backends=["LIBFABRIC"]'
    own = (backends, "engine.kv_load_failure_policy=fail", f"{TRANSFER}.kv_port=7")
    decode = transfers(*SPLIT, *own, "engine.kv_host_cache_gb=1")[Role.decode]
    (first, second) = decode["kv_connector_extra_config"]["connectors"]
    expected = nixl("kv_consumer", backends=["LIBFABRIC"])
    assert first == {**expected, "kv_port": 7, "kv_load_failure_policy": "fail"}
    assert second == cache(1)
    assert decode["kv_load_failure_policy"] == "fail"


def test_aggregated_workers_have_only_the_host_cache() -> None:
    assert transfers(*WHOLE, "engine.kv_host_cache_gb=0.5")[Role.aggregated] == cache(0.5)
    own = f"{TRANSFER}.kv_connector_extra_config.eviction_policy=arc"
    tuned = transfers(*WHOLE, "engine.kv_host_cache_gb=2", own)[Role.aggregated]
    assert tuned == cache(2, eviction_policy="arc")


def test_cpu_workers_copy_without_cuda() -> None:
    module = {"spec_name": "HostCopySpec", "spec_module_path": "hpc_dynamo_vllm_host_cache"}
    assert transfers(*CPU, "engine.kv_host_cache_gb=1")[Role.aggregated] == cache(1, **module)


OWN: dict[str, Any] = {
    "kv_connector": "MultiConnector",
    "kv_connector_extra_config": {
        "connectors": [
            {"kv_connector": "NixlConnector", "kv_connector_extra_config": {"backends": ["UCX"]}},
            {"kv_connector": "LMCacheMPConnector"},
            connector("OffloadingConnector", "kv_producer", cpu_bytes_to_use=5),
        ]
    },
}


@pytest.mark.parametrize("written", [OWN, json.dumps(OWN)])
def test_nested_entries_of_the_user_get_role_and_lease(written: Any) -> None:
    both = transfers(*SPLIT, **{"kv-transfer-config": written})
    for role, kv_role in ((Role.prefill, "kv_producer"), (Role.decode, "kv_consumer")):
        entries = [
            nixl(kv_role, backends=["UCX"]),
            {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both"},
            connector("OffloadingConnector", "kv_producer", cpu_bytes_to_use=5),
        ]
        expected = connector("MultiConnector", kv_role, connectors=entries)
        assert both[role] == {**expected, "kv_load_failure_policy": "recompute"}


def refusal(*words: str, **args: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        transfers(*words, **args)
    return refused.value


def test_nested_nixl_refuses_pipeline_stages_and_compares_versions() -> None:
    stages = ("topology.prefill.pipeline_parallel=2",)
    assert "pipeline" in refusal(*SPLIT, *stages, kv_transfer_config=OWN).message
    adapter, config = engine("vllm"), compose(list(SPLIT))
    assert adapter.needs_equal_versions(replace(config.engine, args={"kv-transfer-config": OWN}))
    for entry, compared in (
        ({"kv_connector": "LMCacheMPConnector"}, False),
        (connector("NixlConnector", "kv_both", enforce_handshake_compat=False), False),
        (connector("NixlConnector", "kv_both"), True),
    ):
        own = connector("MultiConnector", "kv_both", connectors=[entry])
        given = replace(config.engine, args={"kv-transfer-config": own})
        assert adapter.needs_equal_versions(given) is compared


@pytest.mark.parametrize("entries", [None, [], 5, "x", [5], {"a": 1}, [{}, "NixlConnector"]])
def test_nested_entries_must_be_mappings(entries: Any) -> None:
    own = connector("MultiConnector", "kv_both", connectors=entries)
    assert "connectors must be a list" in refusal(*SPLIT, **{"kv-transfer-config": own}).message


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (SPLIT, "MultiConnector"),
        (SPLIT, "OffloadingConnector"),  # would replace NIXL
        (SPLIT, "LMCacheMPConnector"),
        (WHOLE, "LMCacheMPConnector"),
        (WHOLE, "NixlConnector"),
    ],
)
def test_host_cache_with_another_connector_is_refused(words: tuple[str, ...], own: str) -> None:
    given = connector(own, "kv_both", connectors=[{"kv_connector": "NixlConnector"}])
    error = refusal(*words, "engine.kv_host_cache_gb=1", **{"kv-transfer-config": given})
    assert error.message.endswith(f"kv_connector={own}")
    assert "engine.kv_host_cache_gb=0" in error.hint


def test_option_that_replaces_nixl_is_refused() -> None:
    error = refusal(*SPLIT, "engine.args.kv-offloading-size=20")
    assert error.hint == "engine.kv_host_cache_gb=20"


@pytest.mark.parametrize("contract", contracts("sglang"))
def test_sglang_uses_hicache_on_workers_that_prefill(contract: Any) -> None:
    both = found(compose([*SPLIT, "engine=sglang", "engine.kv_host_cache_gb=64"]))
    added = {"--enable-hierarchical-cache": "", "--hicache-size": "68"}  # 1e9 bytes
    assert both[Role.prefill].items() >= added.items()
    assert not both[Role.decode].keys() & added.keys()
    assert rejected(contract, ["--enable-hierarchical-cache", "--hicache-size", "68"]) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("engine=sglang-cpu", "engine.kv_host_cache_gb=1"), "SGLang on CPUs has no host cache"),
        (("engine=sglang", "engine.kv_host_cache_gb=0.5"), "SGLang takes whole gigabytes"),
        (("engine=simulator", "engine.kv_host_cache_gb=1"), "the simulator has no host cache"),
    ],
)
def test_engines_without_host_cache_refuse_it(words: tuple[str, ...], reason: str) -> None:
    assert reason in refusal(*WHOLE[::2], "cluster.gpus_per_node=1", *words).message


@pytest.mark.parametrize("version", ["1.3", "1.4"])
def test_trtllm_has_the_host_cache_in_its_options_file(version: str) -> None:
    own = "engine.args.extra.kv_cache_config.free_gpu_memory_fraction=0.8"
    words = (*SPLIT, "engine=trtllm", f"engine.version={version}", own)
    config = compose([*words, "engine.kv_host_cache_gb=64"])
    layout = plan(config)
    check(config, layout)
    place = Placement(layout.workers[0], "10.0.0.7", (5000,), ("0",), "token", log_folder="/logs")
    (text,) = engine("trtllm").command(config, place).files.values()
    expected = {"host_cache_size": 64 * GIB, "free_gpu_memory_fraction": 0.8}
    assert json.loads(text)["kv_cache_config"] == expected
    assert "host_cache_size" in contracts("trtllm", version)[0].fields["KvCacheConfig"]


@pytest.mark.parametrize("words", [SPLIT, WHOLE, CPU])
def test_slurm_gets_memory_for_the_host_cache(words: tuple[str, ...]) -> None:
    sizes = []
    for gib in (0, 10):
        config = compose([*words, f"engine.kv_host_cache_gb={gib}"])
        sizes.append(required_resources(config, plan(config)).memory_gb)
    processes = 2 if words is SPLIT else 1
    assert sizes[1] - sizes[0] == 10 * processes


def test_without_host_cache_nothing_changes() -> None:
    assert transfers(*WHOLE) == {Role.aggregated: None}
    assert transfers(*SPLIT)[Role.prefill] == nixl("kv_producer")
    assert set(ENGINES) == {"sglang", "simulator", "trtllm", "vllm"}  # each has a test above
