"""vLLM's KV connectors of a worker: NIXL between prefill and decode, and a cache in host memory.

A worker with both runs them below a MultiConnector. vLLM loads a prompt from the first connector
that has it. NIXL is the first: a decode worker then pulls what its prefill worker holds, which
frees the blocks there.

Source: vLLM 0.32, config/kv_transfer.py, v1/kv_offload/ and, in
distributed/kv_transfer/kv_connector/v1/, multi_connector.py, offloading_connector.py and nixl/.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hpc_dynamo.config import (
    Config,
    Device,
    Engine,
    KvLoadFailurePolicy,
    ParallelSizes,
    Role,
    TopologyKind,
)
from hpc_dynamo.config.merge import merge_options, parse_json
from hpc_dynamo.engines.options import user_options
from hpc_dynamo.errors import ConfigError, quoted_override

NIXL, MULTI, OFFLOADING = "NixlConnector", "MultiConnector", "OffloadingConnector"
NIXL_CONNECTORS = (NIXL, "NixlPullConnector", "NixlPushConnector")
FIELD = "engine.args.kv-transfer-config"
EXTRA, CONNECTORS = "kv_connector_extra_config", "connectors"

BOTH = "kv_both"
KV_ROLE = {Role.prefill: "kv_producer", Role.decode: "kv_consumer", Role.aggregated: BOTH}

# Prefilled blocks are freed after this time, read or not. A late reader gets the blocks of other
# requests without an error, and vLLM's default of 30 s is short for a full decode worker.
KV_LEASE_S = 300

# vLLM's own copies between GPU and host need CUDA. This module copies with PyTorch.
CPU_SPEC = {"spec_name": "HostCopySpec", "spec_module_path": "hpc_dynamo_vllm_host_cache"}

Connector = Mapping[str, Any]


def transfer_config(
    engine: Engine, role: Role, sizes: ParallelSizes, *, both_roles: bool
) -> Connector | None:
    """Return the value of `--kv-transfer-config` for one worker; None if it has no connector.

    The user's kv-transfer-config overrides the generated one. `both_roles`: the role may change
    while the engine runs.
    """
    own = user_transfer_config(engine)
    nixl = _nixl(engine, BOTH if both_roles else KV_ROLE[role])
    if own.get("kv_connector") == MULTI:
        return _with_nested_defaults(own, nixl)
    cache = _host_cache(engine, sizes) if engine.kv_host_cache_gb else None
    if role is Role.aggregated:
        return merge_options(cache, own) if cache else own or None
    merged = merge_options(nixl, own)
    if cache is None:
        return merged
    top = {name: merged[name] for name in ("kv_role", "kv_load_failure_policy")}
    return {"kv_connector": MULTI, **top, EXTRA: {CONNECTORS: [merged, cache]}}


def user_transfer_config(engine: Engine) -> Connector:
    """Return the user's kv-transfer-config; empty if there is none. Raises ConfigError."""
    value = parse_json(user_options(engine).get("kv-transfer-config")) or {}
    if not isinstance(value, Mapping):
        what = f"{FIELD}={value} must be a mapping"
        raise ConfigError(what, hint=quoted_override(FIELD, '{"kv_port": 14579}'))
    return value


def user_nixl(engine: Engine) -> Connector | None:
    """Return the user's settings of NIXL, also below a MultiConnector; None without NIXL."""
    own = user_transfer_config(engine)
    entries = _nested(own) if own.get("kv_connector") == MULTI else [{"kv_connector": NIXL, **own}]
    return next((e for e in entries if e.get("kv_connector") in NIXL_CONNECTORS), None)


def check_connectors(config: Config) -> None:
    """Raise ConfigError for connectors that cannot be combined, or cannot be read."""
    own, cache = user_transfer_config(config.engine), config.engine.kv_host_cache_gb
    connector = own.get("kv_connector")
    if connector == MULTI and not _nested(own):
        what = f"{FIELD}.{EXTRA}.{CONNECTORS} must be a list of mappings"
        raise ConfigError(what, hint=f'[{{"kv_connector": "{NIXL}"}}, …]')
    aggregated = config.topology.kind is TopologyKind.aggregated
    if cache and connector not in (None, *((OFFLOADING,) if aggregated else NIXL_CONNECTORS)):
        what = f"engine.kv_host_cache_gb={cache} cannot be combined with {FIELD}.kv_connector="
        hint = f"engine.kv_host_cache_gb=0, and an {OFFLOADING} below a {MULTI}"
        raise ConfigError(f"{what}{connector}", hint=hint)


def _nested(multi: Connector) -> Sequence[Connector]:
    """Return the connectors below a MultiConnector; none if one of them is not a mapping."""
    extra = multi.get(EXTRA)
    entries = extra.get(CONNECTORS) if isinstance(extra, Mapping) else None
    readable = isinstance(entries, list) and all(isinstance(each, Mapping) for each in entries)
    return entries if entries and readable else []


def _with_nested_defaults(own: Connector, nixl: Connector) -> Connector:
    """Return a MultiConnector of the user: its NIXL has the role and the lease of the worker, and
    its other connectors read and write."""
    nested = [
        merge_options(nixl, entry)
        if entry.get("kv_connector") in NIXL_CONNECTORS
        else {"kv_role": BOTH, **entry}
        for entry in _nested(own)
    ]
    top = {name: nixl[name] for name in ("kv_role", "kv_load_failure_policy")}
    return {**top, **own, EXTRA: {**own[EXTRA], CONNECTORS: nested}}


def _nixl(engine: Engine, kv_role: str) -> dict[str, Any]:
    policy = engine.kv_load_failure_policy or KvLoadFailurePolicy.recompute
    buffer = {"kv_buffer_device": "cpu"} if engine.device is Device.cpu else {}
    return {
        "kv_connector": NIXL,
        "kv_role": kv_role,
        "kv_load_failure_policy": str(policy),
        EXTRA: {"kv_lease_duration": KV_LEASE_S},
        **buffer,
    }


def _host_cache(engine: Engine, sizes: ParallelSizes) -> dict[str, Any]:
    """Return the connector of the host cache. Each data-parallel rank has a cache of its own, which
    its GPUs share. Events have the tokens of a block, so that the router counts it."""
    on_cpu = engine.device is Device.cpu
    caches = 1 / sizes.data if on_cpu else sizes.tensor * sizes.pipeline
    size = {"cpu_bytes_to_use": int(engine.kv_host_cache_gb * caches * 2**30)}
    extra = {**size, "self_describing_kv_events": True, **(CPU_SPEC if on_cpu else {})}
    return {"kv_connector": OFFLOADING, "kv_role": BOTH, EXTRA: extra}
