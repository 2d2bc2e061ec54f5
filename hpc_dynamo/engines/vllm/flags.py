"""Command line and environment of a vLLM worker, from the topology and its placement."""

from typing import Any

from hpc_dynamo.config import Config, Engine
from hpc_dynamo.engines.adapter import EventEndpoints, Placement
from hpc_dynamo.engines.environment import device_environment, network_environment, python_path
from hpc_dynamo.engines.event_options import kv_events_config
from hpc_dynamo.engines.options import command_line, sequences_per_rank, user_options
from hpc_dynamo.engines.vllm.kv_connectors import transfer_config
from hpc_dynamo.engines.vllm.lora import vllm_options
from hpc_dynamo.engines.vllm.shards import shard_options

# Options that this module and its neighbors compute, or that the toolkit's HTTP client relies on.
CONTROLLED_OPTIONS = {
    "model": "model.path",
    "served-model-name": "model.name",
    "host": "serve.host",
    "port": "serve.port",
    "api-key": "serve.api_key_file=FILE",
    "ssl-keyfile": "serve.tls_key",
    "ssl-certfile": "serve.tls_cert",
    "tensor-parallel-size": "topology.{role}.tensor_parallel",
    "pipeline-parallel-size": "topology.{role}.pipeline_parallel",
    "data-parallel-size": "topology.{role}.data_parallel",
    "lora-modules": "model.lora.NAME=FOLDER",
    "enable-lora": "model.lora.NAME=FOLDER",
    "enable-sleep-mode": "engine.sleep_mode",
    # It would replace NIXL.
    "kv-offloading-size": "engine.kv_host_cache_gb",
    "kv-offloading-backend": "",
    **dict.fromkeys(
        ("data-parallel-address", "data-parallel-rpc-port", "data-parallel-size-local",
         "data-parallel-start-rank", "data-parallel-rank", "device-ids", "grpc", "headless",
         "master-addr", "master-port", "middleware", "nnodes", "node-rank", "root-path", "uds"),
        "",
    ),
}  # fmt: skip


def server_flags(
    config: Config, placement: Placement, *, both_roles: bool, events: EventEndpoints | None
) -> list[str]:
    """Return vLLM's options for one worker or shard. Options of the user override them.

    `both_roles`: the role may change while the engine runs.
    """
    role, sizes = placement.worker.role, placement.worker.parallel
    options: dict[str, Any] = {
        "model": config.model.path,
        "served-model-name": config.model.served_name,
        "host": placement.address,
        "port": placement.ports[0],
        "tensor-parallel-size": sizes.tensor,
        "pipeline-parallel-size": sizes.pipeline,
        "data-parallel-size": sizes.data,
        "max-num-seqs": sequences_per_rank(config.engine, sizes.data),
        "middleware": "hpc_dynamo_auth.BearerTokenAuth",
        "enable-prompt-tokens-details": True,
        "enable-request-id-headers": True,
        **vllm_options(config.model),
        **({"enable-sleep-mode": True} if config.engine.sleep_mode else {}),
        **shard_options(config, placement),
    }
    transfer = transfer_config(config.engine, role, sizes, both_roles=both_roles)
    args = user_options(config.engine)
    args.pop("kv-transfer-config", None)
    if transfer:
        options["kv-transfer-config"] = transfer
    if events:
        options["kv-events-config"] = kv_events_config(events)
    return command_line(options | args)


def server_environment(engine: Engine, placement: Placement) -> dict[str, str]:
    """Return vLLM's environment for one worker or shard."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        # Enables the paths for sleep and wake. They require the run's token like all paths.
        **({"VLLM_SERVER_DEV_MODE": "1"} if engine.sleep_mode else {}),
        **({"VLLM_HOST_IP": placement.address} if placement.rendezvous else {}),
        # Otherwise an allowed host could send the engine to one that is not.
        **({} if "*" in engine.allowed_media else {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}),
        **network_environment(placement),
        # Sockets between the processes of a server.
        **({"VLLM_RPC_BASE_PATH": placement.events_folder} if placement.events_folder else {}),
        "VLLM_NIXL_SIDE_CHANNEL_HOST": placement.address,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(placement.ports[1]),
        **device_environment(engine, placement),
        **engine.env,
        "PYTHONPATH": python_path(engine),
        "VLLM_API_KEY": placement.token,
    }
