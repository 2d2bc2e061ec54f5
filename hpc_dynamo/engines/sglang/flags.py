"""Command line and environment of an SGLang worker, from the topology and its placement."""

from typing import Any

from hpc_dynamo.config import Config, Device, Engine, Role
from hpc_dynamo.engines.adapter import EventEndpoints, Placement
from hpc_dynamo.engines.environment import device_environment, network_environment, python_path
from hpc_dynamo.engines.event_options import kv_events_config
from hpc_dynamo.engines.options import command_line, sequences_per_rank, user_options
from hpc_dynamo.engines.sglang.role_switch import OPTION, has_bootstrap_server, switches_roles

# Page size. With SGLang's default of 1 each token is a transfer of its own.
BLOCK_TOKENS = 16

CPU_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",  # for any computation on the CPU (srt/utils/common.py, is_cpu)
    # The first request with a repetition_penalty would compile C++ code in the scheduler.
    "TORCH_COMPILE_DISABLE": "1",
}
# Options that this module computes, or that the toolkit's HTTP client relies on.
CONTROLLED_OPTIONS = {
    "model-path": "model.path",
    "served-model-name": "model.name",
    "host": "serve.host",
    "port": "serve.port",
    "api-key": "serve.api_key_file=FILE",
    "ssl-keyfile": "serve.tls_key",
    "ssl-certfile": "serve.tls_cert",
    "tp-size": "topology.{role}.tensor_parallel",
    "pp-size": "topology.{role}.pipeline_parallel",
    "dp-size": "topology.{role}.data_parallel",
    "lora-paths": "model.lora.NAME=FOLDER",
    "disaggregation-mode": "topology.kind",
    **dict.fromkeys(("disaggregation-bootstrap-port", "dist-init-addr", "nnodes", "node-rank"), ""),
}

SLEEP_OPTIONS = {"enable-memory-saver": True, "enable-weights-cpu-backup": True}


def server_flags(config: Config, placement: Placement, events: EventEndpoints | None) -> list[str]:
    """Return SGLang's options for one worker or shard. Options of the user override them."""
    role, sizes = placement.worker.role, placement.worker.parallel
    adapters = [f"{name}={path}" for name, path in config.model.lora.items()]
    options: dict[str, Any] = {
        "model-path": config.model.path,
        "served-model-name": config.model.served_name,
        "host": placement.address,
        "port": placement.ports[0],
        "tp-size": sizes.tensor,
        "pp-size": sizes.pipeline,
        "dp-size": sizes.data,
        "max-running-requests": sequences_per_rank(config.engine, sizes.data),
        "page-size": BLOCK_TOKENS,
        "enable-metrics": True,
        "enable-cache-report": True,
        **({"lora-paths": adapters} if adapters else {}),
        **(SLEEP_OPTIONS if config.engine.sleep_mode else {}),
        **_host_cache(config.engine, role),
    }
    if role is not Role.aggregated:
        options["disaggregation-mode"] = str(role)
        options["disaggregation-transfer-backend"] = "nixl"
        options |= {OPTION: True} if switches_roles(config) else {}
    if has_bootstrap_server(config, role):
        # All shards name the bootstrap server of the first.
        ports = placement.rendezvous.ports if placement.rendezvous else placement.ports
        options["disaggregation-bootstrap-port"] = ports[1]
    options |= _cpu_options(config, role) | _shard_options(placement)
    if events:
        options["kv-events-config"] = kv_events_config(events)
    return sglang_command_line(options | user_options(config.engine))


def sglang_command_line(args: dict[str, Any]) -> list[str]:
    """Return the arguments for a mapping. SGLang has no `--no-` forms: False omits a flag."""
    return command_line({name: value for name, value in args.items() if value is not False})


def _host_cache(engine: Engine, role: Role) -> dict[str, Any]:
    """Return the options of HiCache, whose size is in whole GB for each GPU. Decode workers get
    none, since they cache no prefixes by default."""
    if not engine.kv_host_cache_gb or role is Role.decode:
        return {}
    return {"enable-hierarchical-cache": True, "hicache-size": host_cache_gb(engine)}


def host_cache_gb(engine: Engine) -> int:
    """Return SGLang's size of HiCache, in units of 1e9 bytes."""
    return int(engine.kv_host_cache_gb * 2**30 / 1e9)


def _cpu_options(config: Config, role: Role) -> dict[str, Any]:
    """Return the options of a worker without a GPU. SGLang selects the attention backend itself:
    torch_native on processors without AMX."""
    if config.engine.device is not Device.cpu:
        return {}
    # Without sleep-on-idle an idle scheduler polls without pause and uses half a core. The overlap
    # schedule of a prefill worker needs CUDA events.
    options = {"device": "cpu", "sleep-on-idle": True, "disable-overlap-schedule": True}
    if role is Role.decode or (role is Role.prefill and switches_roles(config)):
        # The default backup is a host pool that is pinned by CUDA.
        options["disaggregation-decode-retraction-backup"] = "cpu_tensor"
    return options


def _shard_options(placement: Placement) -> dict[str, Any]:
    if placement.rendezvous is None:
        return {}
    address = f"{placement.rendezvous.address}:{placement.rendezvous.ports[0]}"
    return {
        "nnodes": len(placement.worker.shards),
        "node-rank": placement.shard_index,
        "dist-init-addr": address,
    }


def server_environment(engine: Engine, placement: Placement) -> dict[str, str]:
    """Return SGLang's environment for one worker or shard."""
    host = {"SGLANG_HOST_IP": placement.address} if placement.rendezvous else {}
    cpu = CPU_ENVIRONMENT if engine.device is Device.cpu else {}
    return {
        **host,
        **cpu,
        **network_environment(placement),
        **device_environment(engine, placement),
        **engine.env,
        "PYTHONPATH": python_path(engine),
        "HPC_DYNAMO_ENGINE_KEY": placement.token,
    }
