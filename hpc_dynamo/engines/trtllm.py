"""TensorRT-LLM's OpenAI server, with NIXL between prefill and decode.

Source: TensorRT-LLM 1.3, tensorrt_llm/commands/serve.py (the command), llmapi/llm_args.py (the
file of options) and llmapi/trtllm-llmapi-launch (ranks over nodes). Started as a module, which
`trtllm-serve` is a script for: in containers the script does not lie beside the interpreter. What
we emit is held against that source by tests/contract. It asks nobody for a key:
docs/engine-trtllm.md says what that means.
"""

import json
from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Config, ContainerKind, Device, Pool, Role
from hpc_dynamo.engines.compat_checks import refuse_recompute, require_model
from hpc_dynamo.engines.contract import (
    Command,
    EventEndpoints,
    MetricNames,
    Placement,
    SleepEndpoints,
    device_environment,
    parse_json,
    python_executable,
    uses_kv_events,
)
from hpc_dynamo.engines.diagnostics import COMMON, PORT_TAKEN, find_hint
from hpc_dynamo.engines.options import positive_int
from hpc_dynamo.engines.roles import merged
from hpc_dynamo.engines.shards import multi_node_workers, require_equal_shards
from hpc_dynamo.engines.trtllm_pd_protocol import TrtllmPdProtocol
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker

BLOCK_TOKENS = 32  # kv_cache_config.tokens_per_block

# A prefill worker frees blocks that nobody has pulled until then; without it, never.
KV_TRANSFER_TIMEOUT_MS = 300_000

# Most of these are of versions after 1.3.0rc3; what is not there is read as zero.
TRTLLM_METRICS = MetricNames(
    running="trtllm_num_requests_running",
    waiting="trtllm_num_requests_waiting",
    kv_usage="trtllm_kv_cache_utilization",
    prefix_queries="trtllm_prompt_tokens",
    prefix_hits="trtllm_prompt_cached_tokens",
    prompt_tokens="trtllm_prompt_tokens",
    generation_tokens="trtllm_generation_tokens",
    ttft="trtllm_time_to_first_token_seconds",
    itl="trtllm_time_per_output_token_seconds",  # a mean a request
    kv_bytes="",  # it counts none
    cache_info="",
    path="/prometheus/metrics",
)

# Of a world over several nodes: rank 0 also runs the server, the others wait for its work.
LAUNCHER = "trtllm-llmapi-launch"
SHELL_SPECIAL = " \t\n*?["

# Fields of the file that we write into or read, and what one of theirs looks like.
MAPPING_FIELDS = {
    "cache_transceiver_config": "max_tokens_in_buffer=8192",
    "kv_cache_config": "free_gpu_memory_fraction=0.8",
}

OPTIONS_FILE_NAMES = ("config", "extra_llm_api_options")  # two names of one option

KNOWN_FAILURES = {
    "Failed to bind socket to": PORT_TAKEN,
    "No module named 'tensorrt_llm'": "engine.python=/env/bin/python, where it is installed",
    "No GPU devices found": "TensorRT-LLM computes on NVIDIA GPUs alone; nvidia-smi on that node",
    "insufficient GPU memory": "a smaller engine.args.max_num_tokens, or more GPUs a worker",
    "out of memory": "engine.args.free_gpu_memory_fraction=0.8, or more GPUs a worker",
    "kv_cache_transceiver is disabled": "engine.args.extra must not unset cache_transceiver_config",
    "Extra inputs are not permitted": "a key of engine.args.extra that this version does not know",
    "No such option": "a name under engine.args that this version's trtllm-serve does not know",
    "not enough slots available": (
        "Open MPI counts cores: engine.env.OMPI_MCA_rmaps_base_oversubscribe=1 (version 4), "
        "engine.env.PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe (version 5)"
    ),
    **COMMON,
}


class TrtllmAdapter:
    """See engines.contract.Engine."""

    pd_protocol = TrtllmPdProtocol()
    metrics = TRTLLM_METRICS
    tokenizes = False  # it has no /tokenize
    port_count = 1  # NIXL finds ports of its own
    rendezvous_port_count = 0
    hang_messages = ()

    def check(self, config: Config, plan: Plan) -> None:
        require_model(config)
        if config.engine.device is not Device.cuda:
            what = f"engine.device={config.engine.device}: TensorRT-LLM computes on GPUs alone"
            raise ConfigError(what, hint="engine.device=cuda")
        _check_args(_args(config))
        self.block_tokens(config)
        _refuse_adapters(config)
        if config.engine.sleep_mode:
            what = "engine.sleep_mode=true: trtllm-serve has no paths for it"
            raise ConfigError(what, hint="engine.sleep_mode=false")
        refuse_recompute("trtllm", config)
        for role, pool in config.topology.pools:
            _check_pool(role, pool)
        for worker in multi_node_workers(plan):
            require_equal_shards("trtllm", config, worker)
            _check_mpi_step(config, worker)
        if uses_kv_events(config):
            what = "router.kv_events=true: TensorRT-LLM's server publishes no KV events"
            raise ConfigError(what, hint="router.kv_events=false: guessed from our own decisions")

    def command(self, config: Config, place: Placement) -> Command:
        pool = dict(config.topology.pools)[place.worker.role]
        args = _args(config)
        extra = args.pop("extra", None) or {}
        name = f"worker-{place.worker.rank}.yaml"
        options: dict[str, Any] = {
            "host": place.address,
            "port": place.ports[0],
            "backend": "pytorch",
            "tp_size": pool.tensor_parallel * pool.data_parallel,
            "pp_size": pool.pipeline_parallel,
            "max_batch_size": config.engine.max_num_seqs,
            "extra_llm_api_options": f"{place.log_folder}/{name}",
        }
        if self.is_mpi_step(config, place.worker):
            options["gpus_per_node"] = len(place.worker.shards[0].gpus)
        module = ("-m", "tensorrt_llm.commands.serve", "serve", config.model.path)
        env = {"TRTLLM_NO_USAGE_STATS": "1", **device_environment(config, place)}
        text = json.dumps(merged(_llm_args(place.worker.role, pool), extra), indent=1)
        argv = (
            *_launcher(config, place),
            python_executable(config),
            *module,
            *_click_flags(options | args),
        )
        return Command(argv, env | config.engine.env, {name: text + "\n"})  # JSON is YAML

    def is_mpi_step(self, config: Config, worker: Worker) -> bool:
        return len(worker.shards) > 1

    def event_endpoints(self, config: Config, place: Placement) -> EventEndpoints | None:
        """None: its events are to be asked for, and each is told to one asker only."""
        return None

    def serves_both_roles(self, config: Config) -> bool:
        return False  # a prefill worker has no overlap scheduler, and would decode slowly

    def sleep_endpoints(self, config: Config) -> SleepEndpoints | None:
        return None

    def block_tokens(self, config: Config) -> int:
        cache = (_args(config).get("extra") or {}).get("kv_cache_config") or {}
        name = "engine.args.extra.kv_cache_config.tokens_per_block"
        return positive_int(name, cache.get("tokens_per_block"), BLOCK_TOKENS)

    def diagnose(self, log_tail: str) -> str:
        return find_hint(KNOWN_FAILURES, log_tail)


def _refuse_adapters(config: Config) -> None:
    """Raises ConfigError: its requests name an adapter's folder in fields of their own."""
    if config.model.lora:
        what = f"model.lora.{next(iter(config.model.lora))}: trtllm-serve has no adapters by name"
        raise ConfigError(what, hint="engine=vllm or engine=sglang; or merge it into the model")


def _args(config: Config) -> dict[str, Any]:
    """The user's own options, by their names on trtllm-serve's command line."""
    args = {name.replace("-", "_"): value for name, value in config.engine.args.items()}
    return args | ({"extra": parse_json(args["extra"])} if "extra" in args else {})


def _check_args(args: Mapping[str, Any]) -> None:
    for name in OPTIONS_FILE_NAMES:
        if name in args:
            hint = "engine.args.extra: its keys are merged into the file that we write"
            raise ConfigError(f"engine.args.{name} would replace our own file", hint=hint)
    if not isinstance(extra := args.get("extra") or {}, Mapping):
        hint = "engine.args.extra.kv_cache_config.free_gpu_memory_fraction=0.8"
        raise ConfigError("engine.args.extra must be a mapping of LlmArgs' fields", hint=hint)
    for name, field in MAPPING_FIELDS.items():
        if not isinstance(extra.get(name) or {}, Mapping):
            what = f"engine.args.extra.{name}={extra[name]} must be a mapping"
            raise ConfigError(what, hint=f"engine.args.extra.{name}.{field}")


def _check_pool(role: Role, pool: Pool) -> None:
    if pool.data_parallel > 1 and pool.tensor_parallel > 1:
        what = f"topology.{role}: TensorRT-LLM's attention is data or tensor parallel, not both"
        size = pool.tensor_parallel * pool.data_parallel
        hint = f"topology.{role}.data_parallel={size} topology.{role}.tensor_parallel=1"
        raise ConfigError(what, hint=hint)


def _check_mpi_step(config: Config, worker: Worker) -> None:
    """What the script that starts its ranks cannot do. Raises ConfigError."""
    if config.engine.container.kind is ContainerKind.enroot:
        what = f"topology.{worker.role}: TensorRT-LLM over nodes is not started in Enroot"
        raise ConfigError(
            what, hint="engine.container.kind=pyxis or apptainer, or none with engine.python"
        )
    paths = {"model.path": config.model.path, "runs_dir": config.runs_dir}
    for field, value in paths.items():
        if any(letter in value for letter in SHELL_SPECIAL):
            what = f"{field}={value!r}: {LAUNCHER} splits words at blanks and expands patterns"
            raise ConfigError(what, hint="a path without blanks, *, ? and [")


def _launcher(config: Config, place: Placement) -> tuple[str, ...]:
    """Beside the interpreter where that is a path, else on PATH."""
    if len(place.worker.shards) == 1:
        return ()
    folder, slash, _ = python_executable(config).rpartition("/")
    return (f"{folder}{slash}{LAUNCHER}",)


def _llm_args(role: Role, pool: Pool) -> dict[str, Any]:
    """What the command line has no option for: fields of llm_args.TorchLlmArgs."""
    fields: dict[str, Any] = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
    if pool.data_parallel > 1:
        fields["enable_attention_dp"] = True
    if role is not Role.aggregated:
        timeout = {"kv_transfer_timeout_ms": KV_TRANSFER_TIMEOUT_MS}
        fields["cache_transceiver_config"] = {"backend": "NIXL", **timeout}
    if role is Role.prefill:
        fields["disable_overlap_scheduler"] = True  # as its documentation has it for prefill
    return fields


def _click_flags(args: Mapping[str, Any]) -> list[str]:
    """As click reads them: underscores stay, a flag is there or not, lists repeat the option."""
    out = list[str]()
    for name, value in args.items():
        match value:
            case None | False:
                continue
            case True:
                out.append(f"--{name}")
            case list() | tuple():
                out += [word for each in value for word in (f"--{name}", str(each))]
            case Mapping():
                out += [f"--{name}", json.dumps(value)]
            case _:
                out += [f"--{name}", str(value)]
    return out
