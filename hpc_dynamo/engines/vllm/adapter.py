"""vLLM's OpenAI server, on GPUs or on the CPU, with NIXL between prefill and decode.

Source: vLLM's `vllm.entrypoints.openai.api_server` and its NixlConnector. The server is started as
a module, since the `vllm` script of the CPU build looks for metadata that it does not have.
"""

from hpc_dynamo.config import Config, Device, Engine, ParallelSizes, Role
from hpc_dynamo.engines.adapter import (
    EngineAdapter,
    EngineCommand,
    EventEndpoints,
    MetricNames,
    Placement,
    SleepEndpoints,
    roles_can_change,
)
from hpc_dynamo.engines.compat_checks import check_block_size, require_model
from hpc_dynamo.engines.contract import version_key
from hpc_dynamo.engines.diagnostics import COMMON, NO_MODEL, OLD_GPU
from hpc_dynamo.engines.environment import python_executable
from hpc_dynamo.engines.event_options import ipc_event_endpoints
from hpc_dynamo.engines.option_names import tuning_options
from hpc_dynamo.engines.options import positive_option, user_options
from hpc_dynamo.engines.vllm.flags import (
    CONTROLLED_OPTIONS,
    server_environment,
    server_flags,
)
from hpc_dynamo.engines.vllm.kv_connectors import check_connectors, user_nixl
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.engines.vllm.shards import (
    RENDEZVOUS_PORT_COUNT,
    check_shards,
    check_stages,
    server_module,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.topology import Plan

# First version whose prefill and decode workers may sleep.
SLEEP_VERSION = "0.33"
BLOCK_TOKENS = {Device.cuda: 16, Device.cpu: 128}

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
    kv_failures="vllm:nixl_num_failed_transfers",
)

# Source: vLLM, entrypoints/serve/dev/sleep/api_router.py.
SLEEP_ENDPOINTS = SleepEndpoints("/sleep?level=1", "/wake_up")

KNOWN_FAILURES = {
    "No module named 'vllm'": "pip install 'hpc-dynamo[vllm]', or engine.python=/env/bin/python",
    "CUDA out of memory": "engine.args.gpu-memory-utilization=0.8, or more GPUs per worker",
    "less than desired GPU memory utilization": (
        "engine.args.gpu-memory-utilization=0.8; `nvidia-smi` on that node shows other processes"
    ),
    "No available memory for the cache blocks": (
        "a larger engine.args.gpu-memory-utilization, or more GPUs per worker"
    ),
    "larger than the available KV cache": "a shorter engine.args.max-model-len",
    "greater than the derived max_model_len": "a smaller engine.args.max-model-len",
    "Invalid repository ID or local directory": NO_MODEL,
    "Cannot find any model weights": NO_MODEL,
    "not supported for the current GPU": OLD_GPU,
    "compute capability of at least": OLD_GPU,
    "is greater than max_lora_rank": "engine.args.max-lora-rank=64, or the rank of the adapter",
    "failed: No adapter found for": "model.lora.NAME must be a PEFT folder that every node sees",
    "Insufficient space in /dev/shm": (
        "a smaller engine.kv_host_cache_gb, or a larger /dev/shm on that node"
    ),
    "Sleep mode is not supported": "engine.sleep_mode=false: this device cannot sleep",
    **COMMON,
}


class VllmAdapter(EngineAdapter):
    """Adapter of vLLM."""

    metrics = VLLM_METRICS
    python_modules = ("vllm",)
    known_failures = KNOWN_FAILURES
    tuning_options = tuning_options(__file__)
    controlled_options = CONTROLLED_OPTIONS
    negates_flags = True
    tokenizes = True
    port_count = 2  # HTTP, NIXL side channel
    rendezvous_port_count = RENDEZVOUS_PORT_COUNT
    hang_messages = ("Address already in use (addr=",)  # NIXL side channel; the server hangs

    def pd_protocol(self, engine: Engine) -> VllmPdProtocol:
        return VllmPdProtocol()

    def check(self, config: Config, plan: Plan) -> None:
        """Raise ConfigError for settings that vLLM 0.32 cannot run."""
        require_model(config.model)
        check_shards(config, plan)
        check_connectors(config)
        check_stages(config)
        if config.engine.sleep_mode and config.engine.device is Device.cpu:
            what = "engine.sleep_mode=true: vLLM's workers can sleep only on GPUs"
            raise ConfigError(what, hint="engine.sleep_mode=false")
        for role, _ in config.topology.pools if config.engine.sleep_mode else ():
            if obstacle := self.sleep_obstacle(config.engine, role):
                hint = f"engine.sleep_mode=false, or vLLM {SLEEP_VERSION} and engine.version="
                raise ConfigError(f"engine.sleep_mode=true: {obstacle}", hint=hint + SLEEP_VERSION)
        check_block_size(config.router, self.block_tokens(config.engine))

    def command(self, config: Config, placement: Placement) -> EngineCommand:
        both, events = self.serves_both_roles(config), self.event_endpoints(config, placement)
        flags = server_flags(config, placement, both_roles=both, events=events)
        argv = (python_executable(config.engine), "-m", server_module(placement), *flags)
        return EngineCommand(argv, server_environment(config.engine, placement))

    def event_endpoints(self, config: Config, placement: Placement) -> EventEndpoints | None:
        """Return None also with a kv-events-config of the user."""
        if "kv-events-config" in user_options(config.engine):
            return None
        ranks = self.caches_of(config, placement.worker).count
        return ipc_event_endpoints(config.router, placement, ranks)

    def prefix_caches(self, engine: Engine, role: Role, sizes: ParallelSizes) -> PrefixCaches:
        """Return a cache for each rank. The header X-data-parallel-rank selects it."""
        return PrefixCaches(sizes.data)

    def serves_both_roles(self, config: Config) -> bool:
        return roles_can_change(config) and not config.planner.restart_on_role_change

    def needs_equal_versions(self, engine: Engine) -> bool:
        """Return True if the handshake of NixlConnector compares versions, as by default.

        Source: vLLM 0.32 and 0.33, kv_connector/v1/nixl/metadata.py
        (compute_nixl_compatibility_hash) and base_worker.py (enforce_handshake_compat).
        """
        nixl = user_nixl(engine)
        extra = (nixl or {}).get("kv_connector_extra_config") or {}
        return nixl is not None and bool(extra.get("enforce_handshake_compat", True))

    def sleep_endpoints(self, engine: Engine) -> SleepEndpoints | None:
        return SLEEP_ENDPOINTS if engine.sleep_mode else None

    def sleep_obstacle(self, engine: Engine, role: Role) -> str:
        """Refuse sleep with KV transfers below vLLM 0.33.

        Sleep frees the KV cache, and its memory has another address afterwards. vLLM 0.32 does not
        register it with NIXL again (kv_connector/v1/nixl has no code for it). vLLM 0.33 does, and
        refuses connectors that do not.
        """
        key = version_key(engine.version)
        if role is Role.aggregated or not key or key >= version_key(SLEEP_VERSION):
            return ""
        what = f"vLLM {engine.version} does not register the KV cache for transfers again after "
        return f"{what}it has slept"

    def block_tokens(self, engine: Engine) -> int:
        """Return vLLM 0.32's default, or `block-size`. Some attention backends use another size."""
        return positive_option(engine, "block-size", BLOCK_TOKENS[engine.device])
