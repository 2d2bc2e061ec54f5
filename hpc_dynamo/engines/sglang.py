"""SGLang's OpenAI server, with NIXL between prefill and decode.

Source: SGLang 0.5.23, srt/server_args.py and srt/arg_groups/fields/ (options),
srt/observability/metrics_collector.py (metrics), srt/disaggregation/ (prefill and decode),
srt/utils/auth.py: its key leaves /health, /ready and /metrics to everybody on the network, and is
not asked for at all with several tokenizer workers.
"""

from typing import Any

from hpc_dynamo.config import Config, Device, Role, Task, TopologyKind
from hpc_dynamo.engines.compat_checks import check_block_size, refuse_recompute, require_model
from hpc_dynamo.engines.contract import (
    Command,
    EventEndpoints,
    MetricNames,
    Placement,
    SleepEndpoints,
    device_environment,
    ipc_event_endpoints,
    kv_events_config,
    python_executable,
    user_options,
)
from hpc_dynamo.engines.contract import command_line as spelled
from hpc_dynamo.engines.diagnostics import COMMON, PORT_TAKEN, find_hint
from hpc_dynamo.engines.lora import sglang_options
from hpc_dynamo.engines.options import positive_option
from hpc_dynamo.engines.sglang_pd_protocol import SglangPdProtocol
from hpc_dynamo.engines.shards import (
    multi_node_workers,
    network_environment,
    pool_of,
    require_equal_shards,
)
from hpc_dynamo.engines.vllm import guard_path
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker

BLOCK_TOKENS = 16  # pages; SGLang's own default of 1 makes a transfer of every token

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
    kv_bytes="",  # a histogram in MB on the prefill side alone; 0 is shown
    cache_info="",  # two gauges, page_size and num_pages
)

SLEEP_ENDPOINTS = SleepEndpoints("/release_memory_occupation", "/resume_memory_occupation")
SLEEP_OPTIONS = {"enable-memory-saver": True, "enable-weights-cpu-backup": True}

KNOWN_FAILURES = {
    "Port is already in use": PORT_TAKEN,
    "No module named 'sglang'": "pip install sglang, or engine.python=/env/bin/python",
    "CUDA out of memory": "engine.args.mem-fraction-static=0.8, or more GPUs a worker",
    "Not enough memory": "a larger engine.args.mem-fraction-static, or more GPUs a worker",
    "Some GPUs may be occupied": "nvidia-smi there: another process has one of the worker's GPUs",
    "Capture cuda graph failed": (
        "a smaller engine.args.mem-fraction-static or engine.args.cuda-graph-max-bs-decode"
    ),
    "SGLang only supports sm75": "a newer GPU: cluster.slurm.constraint, or engine=vllm",
    **COMMON,
}


class SglangAdapter:
    """See engines.contract.Engine."""

    pd_protocol = SglangPdProtocol()
    metrics = SGLANG_METRICS
    tokenizes = True
    port_count = 2  # HTTP, bootstrap server; it finds those between its own processes itself
    rendezvous_port_count = 2  # torch.distributed, bootstrap server
    hang_messages = ()

    def check(self, config: Config, plan: Plan) -> None:
        require_model(config)
        if positive_option(config, "tokenizer-worker-num", 1) > 1:
            what = "engine.args.tokenizer-worker-num: SGLang asks for no key where it is above 1"
            raise ConfigError(what, hint="engine.args.tokenizer-worker-num=1")
        for name in ATTENTION_RANKS:
            positive_option(config, name, 1)
        _check_shards(config, plan)
        _check_stages(config)
        refuse_recompute("sglang", config)
        check_block_size(config, self.block_tokens(config))
        refuse_disaggregated_profile(config)

    def command(self, config: Config, place: Placement) -> Command:
        role, engine = place.worker.role, config.engine
        pool = dict(config.topology.pools)[role]
        options: dict[str, Any] = {
            "model-path": config.model.path,
            "served-model-name": config.model.served_name,
            "host": place.address,
            "port": place.ports[0],
            "tp-size": pool.tensor_parallel,
            "pp-size": pool.pipeline_parallel,
            "dp-size": pool.data_parallel,
            "max-running-requests": engine.max_num_seqs,
            "page-size": BLOCK_TOKENS,
            "enable-metrics": True,
            "enable-cache-report": True,
            **sglang_options(config),
            **(SLEEP_OPTIONS if config.engine.sleep_mode else {}),
        }
        if role is not Role.aggregated:
            options["disaggregation-mode"] = str(role)
            options["disaggregation-transfer-backend"] = "nixl"
        if role is Role.prefill:
            met = place.rendezvous.ports if place.rendezvous else place.ports
            options["disaggregation-bootstrap-port"] = met[1]  # of the first part, for all
        options |= _cpu_options(config, role) | _shard_options(place)
        endpoints = self.event_endpoints(config, place)
        if endpoints:
            options["kv-events-config"] = kv_events_config(endpoints)
        module = ("-m", "hpc_dynamo_sglang")  # sglang.launch_server, with the key
        words = flags(options | user_options(config))
        return Command((python_executable(config), *module, *words), _env(config, place))

    def is_mpi_step(self, config: Config, worker: Worker) -> bool:
        return False

    def event_endpoints(self, config: Config, place: Placement) -> EventEndpoints | None:
        """None also where the user has a kv-events-config, and with data parallelism, of the whole
        or of attention, for which SGLang refuses ipc endpoints. A decode worker caches nothing
        unless it is told to."""
        own, pool = user_options(config), dict(config.topology.pools)[place.worker.role]
        ranks = max(positive_option(config, name, 1) for name in ATTENTION_RANKS)
        if "kv-events-config" in own or pool.data_parallel > 1 or ranks > 1:
            return None
        return ipc_event_endpoints(config, place)

    def serves_both_roles(self, config: Config) -> bool:
        return False  # its --enable-pd-role-switch is not spoken yet: a change of role restarts

    def sleep_endpoints(self, config: Config) -> SleepEndpoints | None:
        return SLEEP_ENDPOINTS if config.engine.sleep_mode else None

    def block_tokens(self, config: Config) -> int:
        """Some attention backends take other pages, which events then tell."""
        return positive_option(config, "page-size", BLOCK_TOKENS)

    def diagnose(self, log_tail: str) -> str:
        return find_hint(KNOWN_FAILURES, log_tail)


def flags(args: dict[str, Any]) -> list[str]:
    """SGLang has no `--no-` forms: False leaves a flag out."""
    return spelled({name: value for name, value in args.items() if value is not False})


def _check_shards(config: Config, plan: Plan) -> None:
    """Refuse what SGLang cannot spread over nodes. Raises ConfigError."""
    for worker in multi_node_workers(plan):
        require_equal_shards("sglang", config, worker)
        pool, role = pool_of(config, worker.role), worker.role
        if pool.data_parallel > 1:
            what = f"topology.{role}.data_parallel={pool.data_parallel} over several nodes"
            own = f"topology.{role}.workers={pool.data_parallel * pool.workers}"
            inside = f"tensor_parallel={pool.tensor_parallel * pool.data_parallel}"
            hint = f"{own} with data_parallel=1, or {inside} with engine.args.attn-dp-size"
            raise ConfigError(f"{what}: SGLang keeps its replicas on one", hint=hint)


def _check_stages(config: Config) -> None:
    """Decode workers fetch each stage's layers from one of their own, or all into one (assert in
    disaggregation/common/conn.py). Raises ConfigError."""
    stages = {role: pool.pipeline_parallel for role, pool in config.topology.pools}
    if Role.decode in stages and stages[Role.decode] not in (1, stages[Role.prefill]):
        what = f"topology.decode.pipeline_parallel={stages[Role.decode]}: SGLang's decode workers "
        what += f"have one pipeline stage or as many as prefill workers ({stages[Role.prefill]})"
        raise ConfigError(what, hint="topology.decode.pipeline_parallel=1")


def _cpu_options(config: Config, role: Role) -> dict[str, Any]:
    """Return options of a worker without a GPU. SGLang chooses the attention backend: torch_native
    on processors without AMX."""
    if config.engine.device is not Device.cpu:
        return {}
    # An idle scheduler polls without pause unless sleep-on-idle is set, and uses half a core. The
    # overlap schedule of a prefill worker needs CUDA's events.
    options = {"device": "cpu", "sleep-on-idle": True, "disable-overlap-schedule": True}
    if role is Role.decode:
        # The default backup is a host pool that is pinned by CUDA.
        options["disaggregation-decode-retraction-backup"] = "cpu_tensor"
    return options


def _shard_options(place: Placement) -> dict[str, Any]:
    if place.rendezvous is None:
        return {}
    met = f"{place.rendezvous.address}:{place.rendezvous.ports[0]}"
    return {
        "nnodes": len(place.worker.shards),
        "node-rank": place.shard_index,
        "dist-init-addr": met,
    }


def refuse_disaggregated_profile(config: Config) -> None:
    """Raises ConfigError: workers that serve nothing alone cannot be measured one by one."""
    if config.task is Task.profile and config.topology.kind is TopologyKind.disaggregated:
        what = "profile measures each worker alone, which SGLang's dialect does not allow"
        raise ConfigError(what, hint="topology=aggregated")


def _env(config: Config, place: Placement) -> dict[str, str]:
    here = {"SGLANG_HOST_IP": place.address} if place.rendezvous else {}
    # Without it SGLang computes nothing on the CPU (srt/utils/common.py, is_cpu).
    cpu = {"SGLANG_USE_CPU_ENGINE": "1"} if config.engine.device is Device.cpu else {}
    own = (
        here
        | cpu
        | network_environment(place)
        | device_environment(config, place)
        | config.engine.env
    )
    return own | {"PYTHONPATH": guard_path(config), "HPC_DYNAMO_ENGINE_KEY": place.token}
