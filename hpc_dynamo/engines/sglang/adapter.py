"""SGLang's OpenAI server, with NIXL between prefill and decode.

Source: SGLang 0.5.23, srt/server_args.py and srt/arg_groups/fields/ (options),
srt/observability/metrics_collector.py (metrics), srt/disaggregation/ (prefill and decode),
srt/utils/auth.py. The last leaves /health, /ready and /metrics open to the network, and checks no
key at all with several tokenizer workers.
"""

from hpc_dynamo.config import Config, Device, Engine, ParallelSizes, Role, Topology
from hpc_dynamo.engines.adapter import (
    EngineAdapter,
    EngineCommand,
    EventEndpoints,
    MetricNames,
    Placement,
    PromptCheck,
    RoleSwitch,
    SleepEndpoints,
)
from hpc_dynamo.engines.compat_checks import (
    check_block_size,
    refuse_disaggregated_profile,
    refuse_host_cache,
    refuse_recompute,
    require_model,
)
from hpc_dynamo.engines.diagnostics import COMMON, PORT_TAKEN
from hpc_dynamo.engines.environment import python_executable
from hpc_dynamo.engines.event_options import ipc_event_endpoints
from hpc_dynamo.engines.option_names import tuning_options
from hpc_dynamo.engines.options import positive_option, user_options
from hpc_dynamo.engines.pd_protocol import Body
from hpc_dynamo.engines.sglang.flags import (
    BLOCK_TOKENS,
    CONTROLLED_OPTIONS,
    host_cache_gb,
    server_environment,
    server_flags,
)
from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from hpc_dynamo.engines.sglang.prompt_check import sglang_prompt_check
from hpc_dynamo.engines.sglang.role_switch import SglangRoleSwitch, switches_roles
from hpc_dynamo.engines.shards import multi_node_workers, require_equal_shards
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.topology import Plan

ATTENTION_RANKS = ("attn-dp-size", "attention-data-parallel-size")  # two names of one option

SGLANG_METRICS = MetricNames(
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    kv_usage="sglang:token_usage",
    prefix_queries="sglang:prompt_tokens",
    prefix_hits="sglang:cached_tokens",
    prompt_tokens="sglang:prompt_tokens",
    generation_tokens="sglang:generation_tokens",
    ttft="sglang:time_to_first_token_seconds",
    itl="sglang:inter_token_latency_seconds",
    kv_bytes="sglang:kv_transfer_total_mb",  # prefill workers report it
    cache_info="",
    kv_bytes_unit=2**20,
    kv_tokens="sglang:max_total_num_tokens",
    kv_failures="sglang:num_transfer_failed_reqs",
)

SLEEP_ENDPOINTS = SleepEndpoints("/release_memory_occupation", "/resume_memory_occupation")

KNOWN_FAILURES = {
    "Port is already in use": PORT_TAKEN,
    "No module named 'sglang'": "pip install sglang, or engine.python=/env/bin/python",
    "CUDA out of memory": "engine.args.mem-fraction-static=0.8, or more GPUs per worker",
    "Not enough memory": "a larger engine.args.mem-fraction-static, or more GPUs per worker",
    "Not enough host memory available": (
        "a smaller engine.kv_host_cache_gb; SGLang leaves 10 GiB of the node's memory free"
    ),
    "Some GPUs may be occupied": (
        "`nvidia-smi` on that node: another process uses one of the worker's GPUs"
    ),
    "Capture cuda graph failed": (
        "a smaller engine.args.mem-fraction-static or engine.args.cuda-graph-max-bs-decode"
    ),
    "SGLang only supports sm75": "a newer GPU: cluster.slurm.constraint, or engine=vllm",
    **COMMON,
}


class SglangAdapter(EngineAdapter):
    """Adapter of SGLang. A role change restarts the engine, unless its transfer backend can do
    without: see role_switch.py."""

    metrics = SGLANG_METRICS
    python_modules = ("sglang",)
    known_failures = KNOWN_FAILURES
    tuning_options = tuning_options(__file__)
    controlled_options = CONTROLLED_OPTIONS
    tokenizes = True
    port_count = 2  # HTTP, bootstrap server; SGLang selects the ports between its processes
    rendezvous_port_count = 2  # torch.distributed, bootstrap server

    def pd_protocol(self, engine: Engine) -> SglangPdProtocol:
        return SglangPdProtocol()

    def check(self, config: Config, plan: Plan) -> None:
        """Raise ConfigError for settings that SGLang 0.5.23 cannot run."""
        require_model(config.model)
        if positive_option(config.engine, "tokenizer-worker-num", 1) > 1:
            what = "engine.args.tokenizer-worker-num: SGLang checks no key if it is above 1"
            raise ConfigError(what, hint="engine.args.tokenizer-worker-num=1")
        _attention_ranks(config.engine)
        _check_shards(config.topology, plan)
        _check_stages(config.topology)
        refuse_recompute("sglang", config.engine)
        _check_host_cache(config.engine)
        check_block_size(config.router, self.block_tokens(config.engine))
        refuse_disaggregated_profile("SGLang", config)

    def command(self, config: Config, placement: Placement) -> EngineCommand:
        flags = server_flags(config, placement, self.event_endpoints(config, placement))
        argv = (python_executable(config.engine), "-m", "hpc_dynamo_sglang", *flags)
        return EngineCommand(argv, server_environment(config.engine, placement))

    def event_endpoints(self, config: Config, placement: Placement) -> EventEndpoints | None:
        """Return None also with a kv-events-config of the user.

        A decode worker caches nothing unless disaggregation-decode-enable-radix-cache is set.
        """
        if "kv-events-config" in user_options(config.engine):
            return None
        ranks = self.caches_of(config, placement.worker).count
        return ipc_event_endpoints(config.router, placement, ranks)

    def prefix_caches(self, engine: Engine, role: Role, sizes: ParallelSizes) -> PrefixCaches:
        """Return a cache for each rank. The room number selects it on prefill workers, the header
        X-data-parallel-rank on others."""
        return PrefixCaches(max(sizes.data, _attention_ranks(engine)))

    def role_switch(self, config: Config) -> RoleSwitch | None:
        return SglangRoleSwitch() if switches_roles(config) else None

    def sleep_endpoints(self, engine: Engine) -> SleepEndpoints | None:
        return SLEEP_ENDPOINTS if engine.sleep_mode else None

    def adapter_fields(self, config: Config, adapter: str) -> Body:
        """Source: entrypoints/openai/serving_base.py (_parse_model_parameter)."""
        return {"model": f"{config.served_name}:{adapter}"}

    def prompt_check(self, config: Config) -> PromptCheck | None:
        return sglang_prompt_check(config)

    def truncates_prompts(self, engine: Engine) -> bool:
        return bool(user_options(engine).get("allow-auto-truncate"))

    def block_tokens(self, engine: Engine) -> int:
        """Return the page size. Some attention backends use another one."""
        return positive_option(engine, "page-size", BLOCK_TOKENS)


def _attention_ranks(engine: Engine) -> int:
    return max(positive_option(engine, name, 1) for name in ATTENTION_RANKS)


def _check_host_cache(engine: Engine) -> None:
    """Raise ConfigError for a host cache on the CPU. SGLang 0.5.23 registers its host pool with
    CUDA, and has copies only for accelerators (mem_cache/pool_host/common.py and mha.py)."""
    if engine.device is Device.cpu:
        refuse_host_cache("SGLang on CPUs", engine)
    if engine.kv_host_cache_gb and not host_cache_gb(engine):
        what = f"engine.kv_host_cache_gb={engine.kv_host_cache_gb}: SGLang takes whole gigabytes"
        raise ConfigError(what, hint="engine.kv_host_cache_gb=1")


def _check_shards(topology: Topology, plan: Plan) -> None:
    """Raise ConfigError for workers that SGLang cannot run over several nodes."""
    for worker in multi_node_workers(plan):
        require_equal_shards("sglang", worker)
        sizes, role = worker.parallel, worker.role
        if sizes.data > 1:
            what = f"topology.{role}.data_parallel={sizes.data} over several nodes"
            workers = sizes.data * dict(topology.pools)[role].workers
            own = f"topology.{role}.workers={workers}"
            inside = f"tensor_parallel={sizes.tensor * sizes.data}"
            hint = f"{own} with data_parallel=1, or {inside} with engine.args.attn-dp-size"
            raise ConfigError(f"{what}: SGLang keeps its replicas on one node", hint=hint)


def _check_stages(topology: Topology) -> None:
    """Raise ConfigError for pipeline stages that differ between the roles. A decode worker fetches
    each stage's layers into the same stage of its own, or all into one (assert in
    disaggregation/common/conn.py)."""
    stages = {role: pool.pipeline_parallel for role, pool in topology.pools}
    if Role.decode in stages and stages[Role.decode] not in (1, stages[Role.prefill]):
        what = f"topology.decode.pipeline_parallel={stages[Role.decode]}: SGLang's decode workers "
        what += f"have one pipeline stage or as many as prefill workers ({stages[Role.prefill]})"
        raise ConfigError(what, hint="topology.decode.pipeline_parallel=1")
