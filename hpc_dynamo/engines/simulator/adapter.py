"""The simulator as an engine. It needs no accelerator and simulates one of the other engines."""

from typing import Any

from hpc_dynamo.config import Config, Engine, KvLoadFailurePolicy, ParallelSizes, Role
from hpc_dynamo.engines.adapter import (
    EngineAdapter,
    EngineCommand,
    EventEndpoints,
    Placement,
    PromptCheck,
    RoleSwitch,
    SleepEndpoints,
    roles_can_change,
)
from hpc_dynamo.engines.compat_checks import (
    check_block_size,
    refuse_disaggregated_profile,
    refuse_host_cache,
)
from hpc_dynamo.engines.contract import disaggregated_media
from hpc_dynamo.engines.environment import device_environment, python_executable
from hpc_dynamo.engines.event_options import ipc_event_endpoints, kv_events_config
from hpc_dynamo.engines.option_names import tuning_options
from hpc_dynamo.engines.options import (
    command_line,
    positive_option,
    sequences_per_rank,
    user_options,
)
from hpc_dynamo.engines.pd_protocol import Body, ConcurrentProtocol, PdProtocol
from hpc_dynamo.engines.sglang.adapter import SglangAdapter
from hpc_dynamo.engines.sglang.role_switch import has_bootstrap_server
from hpc_dynamo.engines.shards import multi_node_workers, node_options, require_equal_shards
from hpc_dynamo.engines.trtllm.adapter import TrtllmAdapter
from hpc_dynamo.engines.vllm.adapter import SLEEP_ENDPOINTS, VLLM_METRICS, VllmAdapter
from hpc_dynamo.engines.vllm.lora import vllm_options
from hpc_dynamo.errors import unknown_name
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.topology import Plan, Worker

# Start of a multi-node worker: one process on each node, or MPI ranks as TensorRT-LLM's.
SHARD_STARTS = ("shards", "mpi")

BLOCK_TOKENS = 16  # default of --block-size

# Values of --pd-protocol.
SIMULATED: dict[str, EngineAdapter] = {
    "vllm": VllmAdapter(),
    "sglang": SglangAdapter(),
    "trtllm": TrtllmAdapter(),
}


def simulated_name(engine: Engine) -> str:
    """Return the engine that `engine.args.pd-protocol` names. Raises ConfigError."""
    name = str(user_options(engine).get("pd-protocol") or "vllm")
    if name not in SIMULATED:
        raise unknown_name("engine.args.pd-protocol", name, SIMULATED)
    return name


def simulated_engine(engine: Engine) -> EngineAdapter:
    """Return the adapter of the simulated engine. Raises ConfigError."""
    return SIMULATED[simulated_name(engine)]


def shard_start(engine: Engine) -> str:
    """Return how the shards of a multi-node worker are started. Raises ConfigError."""
    name = str(user_options(engine).get("start") or "shards")
    if name not in SHARD_STARTS:
        raise unknown_name("engine.args.start", name, SHARD_STARTS)
    return name


class SimulatorAdapter(EngineAdapter):
    """Adapter of the simulator. Its tokenizer is its own, so `tokenizes` is False."""

    metrics = VLLM_METRICS
    own_tokenizer = True
    # PYTHONPATH makes the first visible to any interpreter, but not its dependencies.
    python_modules = ("hpc_dynamo", "msgspec")
    tuning_options = tuning_options(__file__)
    port_count = 2  # HTTP, bootstrap server
    rendezvous_port_count = 1

    def pd_protocol(self, engine: Engine) -> PdProtocol:
        return simulated_engine(engine).pd_protocol(engine)

    def disaggregated_media(self, engine: Engine) -> frozenset[str]:
        return disaggregated_media(simulated_name(engine))

    def check(self, config: Config, plan: Plan) -> None:
        """Raise ConfigError for settings that the simulator does not simulate."""
        for worker in multi_node_workers(plan):
            require_equal_shards("simulator", worker)
        shard_start(config.engine)
        refuse_host_cache("the simulator", config.engine)
        check_block_size(config.router, self.block_tokens(config.engine))
        if self._is_concurrent(config.engine):
            refuse_disaggregated_profile("SGLang", config)

    def command(self, config: Config, placement: Placement) -> EngineCommand:
        """Return the command of one worker or shard. Options of the user override the generated
        ones."""
        ranks = self.caches_of(config, placement.worker).count
        options: dict[str, Any] = {
            "host": placement.address,
            "port": placement.ports[0],
            "model": config.model.served_name,
            "role": "both" if self.serves_both_roles(config) else str(placement.worker.role),
            "max-num-seqs": sequences_per_rank(config.engine, ranks),
            "enable-prompt-tokens-details": True,
            "kv-load-failure-policy": str(self._load_failure_policy(config.engine)),
            **({"data-parallel-size": ranks} if ranks > 1 else {}),
            **vllm_options(config.model),
            **({"enable-sleep-mode": True} if config.engine.sleep_mode else {}),
            **self._shard_options(config, placement),
        }
        role = placement.worker.role
        if self._is_concurrent(config.engine) and has_bootstrap_server(config, role):
            options["disaggregation-bootstrap-port"] = placement.ports[1]
        own = {
            name: value for name, value in user_options(config.engine).items() if name != "start"
        }
        events = self.event_endpoints(config, placement)
        if events:
            options["kv-events-config"] = kv_events_config(events)
        argv = (python_executable(config.engine), "-m", "hpc_dynamo.simulator")
        env = device_environment(config.engine, placement) | config.engine.env
        env |= {"HPC_DYNAMO_ENGINE_KEY": placement.token}
        return EngineCommand((*argv, *command_line(options | own)), env)

    def _is_concurrent(self, engine: Engine) -> bool:
        return isinstance(self.pd_protocol(engine), ConcurrentProtocol)

    def _load_failure_policy(self, engine: Engine) -> KvLoadFailurePolicy:
        """Return the policy of the simulated engine: only vLLM can recompute."""
        recomputes = isinstance(simulated_engine(engine), VllmAdapter)
        default = KvLoadFailurePolicy.recompute if recomputes else KvLoadFailurePolicy.fail
        return engine.kv_load_failure_policy or default

    def _shard_options(self, config: Config, placement: Placement) -> dict[str, Any]:
        options = node_options(placement)
        if not self.is_mpi_step(config.engine, placement.worker):
            return options
        return {"mpi": True, **{name: options[name] for name in ("master-addr", "master-port")}}

    def is_mpi_step(self, engine: Engine, worker: Worker) -> bool:
        """Return True as for TensorRT-LLM with `engine.args.start=mpi`."""
        return len(worker.shards) > 1 and shard_start(engine) == "mpi"

    def event_endpoints(self, config: Config, placement: Placement) -> EventEndpoints | None:
        """Return None also with a kv-events-config of the user."""
        caches = self.caches_of(config, placement.worker)
        if "kv-events-config" in user_options(config.engine) or not caches.steered:
            return None
        return ipc_event_endpoints(config.router, placement, caches.count)

    def prefix_caches(self, engine: Engine, role: Role, sizes: ParallelSizes) -> PrefixCaches:
        """Return those of the simulated engine."""
        return simulated_engine(engine).prefix_caches(engine, role, sizes)

    def serves_both_roles(self, config: Config) -> bool:
        restart = config.planner.restart_on_role_change or self._is_concurrent(config.engine)
        return roles_can_change(config) and not restart

    def role_switch(self, config: Config) -> RoleSwitch | None:
        """Return SGLang's, with its protocol and `engine.args.enable-pd-role-switch=true`."""
        return simulated_engine(config.engine).role_switch(config)

    def sleep_endpoints(self, engine: Engine) -> SleepEndpoints | None:
        return SLEEP_ENDPOINTS if engine.sleep_mode else None

    def adapter_fields(self, config: Config, adapter: str) -> Body:
        return simulated_engine(config.engine).adapter_fields(config, adapter)

    def prompt_check(self, config: Config) -> PromptCheck | None:
        return simulated_engine(config.engine).prompt_check(config)

    def truncates_prompts(self, engine: Engine) -> bool:
        return simulated_engine(engine).truncates_prompts(engine)

    def block_tokens(self, engine: Engine) -> int:
        return positive_option(engine, "block-size", BLOCK_TOKENS)

    def diagnose(self, log_tail: str) -> str:
        if "MissingDependency" in log_tail or "nixl" in log_tail:
            return "pip install --no-deps nixl-cu12 numpy, in the engine's environment"
        return ""
