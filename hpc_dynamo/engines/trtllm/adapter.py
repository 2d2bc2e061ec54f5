"""TensorRT-LLM's OpenAI server, with NIXL between prefill and decode.

Source: TensorRT-LLM 1.3 and 1.4; tests/unit/engines/contract compares the commands with them. The
server checks no key: docs/guides/tensorrt-llm.md describes the consequences.
"""

from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Config, ContainerKind, Device, Engine, Model, Topology
from hpc_dynamo.engines.adapter import EngineAdapter, EngineCommand, MetricNames, Placement
from hpc_dynamo.engines.compat_checks import refuse_recompute, require_model
from hpc_dynamo.engines.diagnostics import COMMON, PORT_TAKEN
from hpc_dynamo.engines.event_options import uses_kv_events
from hpc_dynamo.engines.option_names import tuning_options
from hpc_dynamo.engines.options import positive_int
from hpc_dynamo.engines.shards import multi_node_workers, require_equal_shards
from hpc_dynamo.engines.trtllm.flags import (
    CONTROLLED_OPTIONS,
    LAUNCHER,
    click_options,
    server_command,
    signs_handoffs,
)
from hpc_dynamo.engines.trtllm.pd_protocol import TrtllmPdProtocol
from hpc_dynamo.engines.trtllm.signature import KEY_FIELD
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker

BLOCK_TOKENS = 32  # kv_cache_config.tokens_per_block

# Most of these exist only after 1.3.0rc3. Missing ones are read as zero.
TRTLLM_METRICS = MetricNames(
    running="trtllm_num_requests_running",
    waiting="trtllm_num_requests_waiting",
    kv_usage="trtllm_kv_cache_utilization",
    prefix_queries="trtllm_prompt_tokens",
    prefix_hits="trtllm_prompt_cached_tokens",
    prompt_tokens="trtllm_prompt_tokens",
    generation_tokens="trtllm_generation_tokens",
    ttft="trtllm_time_to_first_token_seconds",
    itl="trtllm_time_per_output_token_seconds",  # mean of each request
    kv_bytes="",
    cache_info="",
    path="/prometheus/metrics",
)

SHELL_SPECIAL = " \t\n*?["

# Fields of the options file that the toolkit writes or reads, with an example value.
MAPPING_FIELDS = {
    "cache_transceiver_config": "max_tokens_in_buffer=8192",
    "kv_cache_config": "free_gpu_memory_fraction=0.8",
}

# Containers whose ranks get the variables of Slurm and MPI, see mpi_rank.py.
MPI_CONTAINERS = (ContainerKind.none, ContainerKind.apptainer, ContainerKind.pyxis)
# Fields of the options file that override the command line of the toolkit.
CONTROLLED_FIELDS = ("model", "tensor_parallel_size", "pipeline_parallel_size", "gpus_per_node")

OPTIONS_FILE_NAMES = ("config", "extra_llm_api_options")  # two names of one option

KNOWN_FAILURES = {
    "Failed to bind socket to": PORT_TAKEN,
    "No module named 'tensorrt_llm'": "engine.python=/env/bin/python of an environment that has it",
    "No GPU devices found": "TensorRT-LLM needs NVIDIA GPUs; `nvidia-smi` on that node lists them",
    "insufficient GPU memory": "a smaller engine.args.max_num_tokens, or more GPUs per worker",
    "out of memory": "engine.args.free_gpu_memory_fraction=0.8, or more GPUs per worker",
    "kv_cache_transceiver is disabled": "engine.args.extra must not unset cache_transceiver_config",
    "Extra inputs are not permitted": (
        "remove keys of engine.args.extra that this version does not have; before 1.4: "
        "engine.version=1.3"
    ),
    "No such option": (
        "engine.version=1.3 before 1.4, or remove names from engine.args that this version's "
        "trtllm-serve does not have"
    ),
    "not enough slots available": (
        "Open MPI counts cores: engine.env.OMPI_MCA_rmaps_base_oversubscribe=1 (version 4), "
        "engine.env.PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe (version 5)"
    ),
    **COMMON,
}


class TrtllmAdapter(EngineAdapter):
    """Adapter of TensorRT-LLM.

    A change of role restarts the engine, since a prefill worker runs without the overlap scheduler.
    It publishes no KV events: they are fetched by one client.
    """

    metrics = TRTLLM_METRICS
    python_modules = ("tensorrt_llm",)
    known_failures = KNOWN_FAILURES
    tuning_options = tuning_options(__file__)
    controlled_options = CONTROLLED_OPTIONS
    own_options = frozenset({"extra"})

    def pd_protocol(self, engine: Engine) -> TrtllmPdProtocol:
        return TrtllmPdProtocol(signs=signs_handoffs(engine))

    def check(self, config: Config, plan: Plan) -> None:
        """Raise ConfigError for settings that TensorRT-LLM 1.3 cannot run."""
        require_model(config.model)
        if config.engine.device is not Device.cuda:
            what = f"engine.device={config.engine.device}: TensorRT-LLM runs only on GPUs"
            raise ConfigError(what, hint="engine.device=cuda")
        _check_args(click_options(config.engine))
        self.block_tokens(config.engine)
        _refuse_adapters(config.model)
        if config.engine.sleep_mode:
            what = "engine.sleep_mode=true: trtllm-serve has no paths for it"
            raise ConfigError(what, hint="engine.sleep_mode=false")
        refuse_recompute("trtllm", config.engine)
        _check_pools(config.topology)
        for worker in multi_node_workers(plan):
            require_equal_shards("trtllm", worker)
            _check_mpi_step(config, worker)
        if uses_kv_events(config.router):
            what = "router.kv_events=true: TensorRT-LLM's server publishes no KV events"
            hint = "router.kv_events=false: the router then estimates what is cached"
            raise ConfigError(what, hint=hint)

    def command(self, config: Config, placement: Placement) -> EngineCommand:
        return server_command(config, placement)

    def is_mpi_step(self, engine: Engine, worker: Worker) -> bool:
        return len(worker.shards) > 1

    def block_tokens(self, engine: Engine) -> int:
        """Return `tokens_per_block` of the options file, or TensorRT-LLM's default."""
        cache = (click_options(engine).get("extra") or {}).get("kv_cache_config") or {}
        name = "engine.args.extra.kv_cache_config.tokens_per_block"
        return positive_int(name, cache.get("tokens_per_block"), BLOCK_TOKENS)


def _refuse_adapters(model: Model) -> None:
    """Raise ConfigError for LoRA adapters: requests name their folder in fields of their own."""
    if model.lora:
        what = f"model.lora.{next(iter(model.lora))}: trtllm-serve has no adapters by name"
        hint = "engine=vllm or engine=sglang; or merge the adapter into the model"
        raise ConfigError(what, hint=hint)


def _check_args(args: Mapping[str, Any]) -> None:
    for name in OPTIONS_FILE_NAMES:
        if name in args:
            what = f"engine.args.{name} would replace the options file of the toolkit"
            raise ConfigError(what, hint="engine.args.extra: its keys are merged into that file")
    if not isinstance(extra := args.get("extra") or {}, Mapping):
        hint = "engine.args.extra.kv_cache_config.free_gpu_memory_fraction=0.8"
        raise ConfigError("engine.args.extra must be a mapping of LlmArgs' fields", hint=hint)
    for name in extra:
        if name == KEY_FIELD or name in CONTROLLED_FIELDS:
            what = f"engine.args.extra.{name}: hpc-dynamo sets this field of each worker itself"
            raise ConfigError(what, hint=f"remove engine.args.extra.{name}")
    for name, field in MAPPING_FIELDS.items():
        if not isinstance(extra.get(name) or {}, Mapping):
            what = f"engine.args.extra.{name}={extra[name]} must be a mapping"
            raise ConfigError(what, hint=f"engine.args.extra.{name}.{field}")


def _check_pools(topology: Topology) -> None:
    for role, pool in topology.pools:
        if pool.data_parallel > 1 and pool.tensor_parallel > 1:
            what = f"topology.{role}: TensorRT-LLM's attention is data or tensor parallel, not both"
            size = pool.tensor_parallel * pool.data_parallel
            hint = f"topology.{role}.data_parallel={size} topology.{role}.tensor_parallel=1"
            raise ConfigError(what, hint=hint)


def _check_mpi_step(config: Config, worker: Worker) -> None:
    """Raise ConfigError for what TensorRT-LLM's launcher of MPI ranks cannot do."""
    kind = config.engine.container.kind
    if kind not in MPI_CONTAINERS:
        what = f"topology.{worker.role}: TensorRT-LLM cannot run over several nodes in {kind}"
        hint = "engine.container.kind=pyxis or apptainer, or none with engine.python"
        raise ConfigError(what, hint=hint)
    paths = {"model.path": config.model.path, "runs_dir": config.runs_dir}
    for field, value in paths.items():
        if any(letter in value for letter in SHELL_SPECIAL):
            what = f"{field}={value!r}: {LAUNCHER} splits words at blanks and expands patterns"
            raise ConfigError(what, hint="a path without blanks, *, ? and [")
