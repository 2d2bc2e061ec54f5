"""vLLM's OpenAI server, on GPUs or on the CPU, with NIXL between prefill and decode.

Source: vLLM's `vllm.entrypoints.openai.api_server` and its NixlConnector; started as a module
because the `vllm` console script of the CPU build looks for metadata that it does not have.
"""

from pathlib import Path
from typing import Any

from hpc_dynamo.config import Config, Device, KvLoadFailurePolicy, Role
from hpc_dynamo.engines.compat_checks import check_block_size, require_model
from hpc_dynamo.engines.contract import (
    Command,
    EventEndpoints,
    MetricNames,
    Placement,
    SleepEndpoints,
    command_line,
    device_environment,
    ipc_event_endpoints,
    kv_events_config,
    parse_json,
    python_executable,
    roles_can_change,
    user_options,
)
from hpc_dynamo.engines.diagnostics import COMMON, NO_MODEL, OLD_GPU, find_hint
from hpc_dynamo.engines.lora import vllm_options
from hpc_dynamo.engines.options import positive_option, require_json
from hpc_dynamo.engines.shards import network_environment
from hpc_dynamo.engines.vllm_pd_protocol import VllmPdProtocol
from hpc_dynamo.engines.vllm_shards import (
    RENDEZVOUS_PORT_COUNT,
    check_shards,
    check_stages,
    server_module,
    shard_options,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker

KV_ROLE = {Role.prefill: "kv_producer", Role.decode: "kv_consumer"}

BLOCK_TOKENS = {Device.cuda: 16, Device.cpu: 128}

# Prefilled blocks are freed after this, read or not, and a late reader gets others' blocks
# without an error; vLLM's own 30 s are short for a full decode worker.
KV_LEASE_S = 300

VLLM_METRICS = MetricNames(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_usage="vllm:kv_cache_usage_perc",
    prefix_queries="vllm:prefix_cache_queries",
    prefix_hits="vllm:prefix_cache_hits",
    prompt_tokens="vllm:prompt_tokens",
    generation_tokens="vllm:generation_tokens",
    ttft="vllm:time_to_first_token_seconds",
    itl="vllm:inter_token_latency_seconds",
    kv_bytes="vllm:nixl_bytes_transferred",
    cache_info="vllm:cache_config_info",
)

SLEEP_ENDPOINTS = SleepEndpoints(
    "/sleep?level=1", "/wake_up"
)  # entrypoints/serve/dev/sleep/api_router.py

GUARD = Path(__file__).parent / "guard"  # holds one module, for the engine to import

KNOWN_FAILURES = {
    "No module named 'vllm'": "pip install 'hpc-dynamo[vllm]', or engine.python=/env/bin/python",
    "CUDA out of memory": "engine.args.gpu-memory-utilization=0.8, or more GPUs a worker",
    "less than desired GPU memory utilization": (
        "engine.args.gpu-memory-utilization=0.8; nvidia-smi there: whose is the rest?"
    ),
    "No available memory for the cache blocks": (
        "a larger engine.args.gpu-memory-utilization, or more GPUs a worker"
    ),
    "larger than the available KV cache": "a shorter engine.args.max-model-len",
    "greater than the derived max_model_len": "a smaller engine.args.max-model-len",
    "Invalid repository ID or local directory": NO_MODEL,
    "Cannot find any model weights": NO_MODEL,
    "not supported for the current GPU": OLD_GPU,
    "compute capability of at least": OLD_GPU,
    "is greater than max_lora_rank": "engine.args.max-lora-rank=64, or what the adapter has",
    "failed: No adapter found for": "model.lora.NAME must be a PEFT folder that every node sees",
    "Sleep mode is not supported": "engine.args.enable-sleep-mode=false: not on this device",
    **COMMON,
}


class VllmAdapter:
    """See engines.contract.Engine."""

    pd_protocol = VllmPdProtocol()
    metrics = VLLM_METRICS
    tokenizes = True
    port_count = 2  # HTTP, NIXL side channel
    rendezvous_port_count = RENDEZVOUS_PORT_COUNT
    hang_messages = ("Address already in use (addr=",)  # of the side channel; the server hangs

    def check(self, config: Config, plan: Plan) -> None:
        require_model(config)
        check_shards(config, plan)
        check_stages(config)
        require_json(config, "kv-transfer-config", '{"kv_port": 14579}')
        if config.engine.sleep_mode and config.engine.device is Device.cpu:
            what = "engine.sleep_mode=true: vLLM's workers sleep on GPUs alone"
            raise ConfigError(what, hint="engine.sleep_mode=false")
        check_block_size(config, self.block_tokens(config))

    def command(self, config: Config, place: Placement) -> Command:
        role, engine = place.worker.role, config.engine
        pool = dict(config.topology.pools)[role]
        options: dict[str, Any] = {
            "model": config.model.path,
            "served-model-name": config.model.served_name,
            "host": place.address,
            "port": place.ports[0],
            "tensor-parallel-size": pool.tensor_parallel,
            "pipeline-parallel-size": pool.pipeline_parallel,
            "data-parallel-size": pool.data_parallel,
            "max-num-seqs": engine.max_num_seqs,
            "middleware": "hpc_dynamo_guard.Guard",
            "enable-prompt-tokens-details": True,
            "enable-request-id-headers": True,
            **vllm_options(config),
            **({"enable-sleep-mode": True} if config.engine.sleep_mode else {}),
            **shard_options(config, place),
        }
        args = user_options(config)
        if role in KV_ROLE:
            transfer = parse_json(args.pop("kv-transfer-config", None)) or {}
            options["kv-transfer-config"] = self._transfer(config, role) | transfer
        endpoints = self.event_endpoints(config, place)
        if endpoints:
            options["kv-events-config"] = kv_events_config(endpoints)
        argv = (
            python_executable(config),
            "-m",
            server_module(place),
            *command_line(options | args),
        )
        return Command(argv, self._environment(config, place))

    def is_mpi_step(self, config: Config, worker: Worker) -> bool:
        return False

    def event_endpoints(self, config: Config, place: Placement) -> EventEndpoints | None:
        """None also where the user has a kv-events-config, and with data parallelism: vLLM 0.32
        refuses ipc endpoints for all but the first of such ranks, and tcp ones would tell the
        prompts to whoever connects."""
        pool = dict(config.topology.pools)[place.worker.role]
        if "kv-events-config" in user_options(config) or pool.data_parallel > 1:
            return None
        return ipc_event_endpoints(config, place)

    def serves_both_roles(self, config: Config) -> bool:
        return roles_can_change(config) and not config.planner.restart_on_role_change

    def sleep_endpoints(self, config: Config) -> SleepEndpoints | None:
        return SLEEP_ENDPOINTS if config.engine.sleep_mode else None

    def block_tokens(self, config: Config) -> int:
        """vLLM 0.32's defaults; some attention backends prefer others, which events then tell."""
        return positive_option(config, "block-size", BLOCK_TOKENS[config.engine.device])

    def _transfer(self, config: Config, role: Role) -> dict[str, Any]:
        transfer: dict[str, Any] = {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_both" if self.serves_both_roles(config) else KV_ROLE[role],
            "kv_load_failure_policy": str(
                config.engine.kv_load_failure_policy or KvLoadFailurePolicy.recompute
            ),
            "kv_connector_extra_config": {"kv_lease_duration": KV_LEASE_S},
        }
        if config.engine.device is Device.cpu:
            transfer["kv_buffer_device"] = "cpu"
        return transfer

    def _environment(self, config: Config, place: Placement) -> dict[str, str]:
        return {
            "VLLM_NO_USAGE_STATS": "1",
            # Else it has no such paths; like all of its paths they ask for the run's own key.
            **({"VLLM_SERVER_DEV_MODE": "1"} if config.engine.sleep_mode else {}),
            **({"VLLM_HOST_IP": place.address} if place.rendezvous else {}),
            **network_environment(place),
            "VLLM_NIXL_SIDE_CHANNEL_HOST": place.address,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(place.ports[1]),
            **device_environment(config, place),
            **config.engine.env,
            "PYTHONPATH": guard_path(config),
            "VLLM_API_KEY": place.token,
        }

    def diagnose(self, log_tail: str) -> str:
        return find_hint(KNOWN_FAILURES, log_tail)


def guard_path(config: Config) -> str:
    """PYTHONPATH of an engine that imports what lies in GUARD, before the user's own."""
    return ":".join(filter(None, (str(GUARD), config.engine.env.get("PYTHONPATH"))))
