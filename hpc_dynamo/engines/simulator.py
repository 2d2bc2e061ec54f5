"""The engine that needs no accelerator: our own simulator, which speaks any engine's dialect."""

from typing import Any

from hpc_dynamo.config import Config, KvLoadFailurePolicy, Role
from hpc_dynamo.engines.compat_checks import check_block_size
from hpc_dynamo.engines.contract import (
    Command,
    EventEndpoints,
    Placement,
    SleepEndpoints,
    command_line,
    device_environment,
    ipc_event_endpoints,
    kv_events_config,
    python_executable,
    roles_can_change,
    user_options,
)
from hpc_dynamo.engines.lora import vllm_options
from hpc_dynamo.engines.options import positive_option
from hpc_dynamo.engines.pd_protocol import ConcurrentProtocol, PdProtocol
from hpc_dynamo.engines.sglang import refuse_disaggregated_profile
from hpc_dynamo.engines.sglang_pd_protocol import SglangPdProtocol
from hpc_dynamo.engines.shards import multi_node_workers, node_options, require_equal_shards
from hpc_dynamo.engines.trtllm_pd_protocol import TrtllmPdProtocol
from hpc_dynamo.engines.vllm import SLEEP_ENDPOINTS, VLLM_METRICS
from hpc_dynamo.engines.vllm_pd_protocol import VllmPdProtocol
from hpc_dynamo.errors import unknown_name
from hpc_dynamo.topology import Plan, Worker

SHARD_STARTS = ("parts", "mpi")  # a process a node, or a world of MPI ranks as TensorRT-LLM's

BLOCK_TOKENS = 16  # the default of its --block-size

# By the names of its --dialect.
PD_PROTOCOLS: dict[str, PdProtocol] = {
    "vllm": VllmPdProtocol(),
    "sglang": SglangPdProtocol(),
    "trtllm": TrtllmPdProtocol(),
}


def simulated_protocol(config: Config) -> PdProtocol:
    """By engine.args.dialect. Raises ConfigError."""
    name = str(user_options(config).get("dialect") or "vllm")
    if name not in PD_PROTOCOLS:
        raise unknown_name("engine.args.dialect", name, PD_PROTOCOLS)
    return PD_PROTOCOLS[name]


def shard_start(config: Config) -> str:
    """How the parts of a worker over several nodes are. Raises ConfigError."""
    name = str(user_options(config).get("start") or "parts")
    if name not in SHARD_STARTS:
        raise unknown_name("engine.args.start", name, SHARD_STARTS)
    return name


class SimulatorAdapter:
    """See engines.contract.Engine."""

    pd_protocol = VllmPdProtocol()
    metrics = VLLM_METRICS
    tokenizes = False  # it has a language of its own
    port_count = 2  # HTTP, bootstrap server
    rendezvous_port_count = 1
    hang_messages = ()

    def check(self, config: Config, plan: Plan) -> None:
        for worker in multi_node_workers(plan):
            require_equal_shards("simulator", config, worker)
        shard_start(config)
        check_block_size(config, self.block_tokens(config))
        if isinstance(simulated_protocol(config), ConcurrentProtocol):
            refuse_disaggregated_profile(config)

    def command(self, config: Config, place: Placement) -> Command:
        options: dict[str, Any] = {
            "host": place.address,
            "port": place.ports[0],
            "model": config.model.served_name,
            "role": "both" if self.serves_both_roles(config) else str(place.worker.role),
            "max-num-seqs": config.engine.max_num_seqs,
            "enable-prompt-tokens-details": True,
            "kv-load-failure-policy": str(self._load_failure(config)),
            **vllm_options(config),
            **({"enable-sleep-mode": True} if config.engine.sleep_mode else {}),
            **self._shard_options(config, place),
        }
        if (
            isinstance(simulated_protocol(config), ConcurrentProtocol)
            and place.worker.role is Role.prefill
        ):
            options["disaggregation-bootstrap-port"] = place.ports[1]
        own = {name: value for name, value in user_options(config).items() if name != "start"}
        endpoints = self.event_endpoints(config, place)
        if endpoints:
            options["kv-events-config"] = kv_events_config(endpoints)
        argv = (
            python_executable(config),
            "-m",
            "hpc_dynamo.simulator",
            *command_line(options | own),
        )
        env = device_environment(config, place) | config.engine.env
        return Command(argv, env | {"HPC_DYNAMO_ENGINE_KEY": place.token})

    def _load_failure(self, config: Config) -> KvLoadFailurePolicy:
        """What the engine does whose dialect is spoken: vLLM alone can recompute."""
        can = isinstance(simulated_protocol(config), VllmPdProtocol)
        usual = KvLoadFailurePolicy.recompute if can else KvLoadFailurePolicy.fail
        return config.engine.kv_load_failure_policy or usual

    def _shard_options(self, config: Config, place: Placement) -> dict[str, Any]:
        if not self.is_mpi_step(config, place.worker):
            return node_options(place)
        told = node_options(place)
        return {"mpi": True, **{name: told[name] for name in ("master-addr", "master-port")}}

    def is_mpi_step(self, config: Config, worker: Worker) -> bool:
        """As TensorRT-LLM's, with engine.args.start=mpi."""
        return len(worker.shards) > 1 and shard_start(config) == "mpi"

    def event_endpoints(self, config: Config, place: Placement) -> EventEndpoints | None:
        if "kv-events-config" in user_options(config):  # the user's own
            return None
        return ipc_event_endpoints(config, place)

    def serves_both_roles(self, config: Config) -> bool:
        both = not isinstance(simulated_protocol(config), ConcurrentProtocol)
        return both and roles_can_change(config) and not config.planner.restart_on_role_change

    def sleep_endpoints(self, config: Config) -> SleepEndpoints | None:
        return SLEEP_ENDPOINTS if config.engine.sleep_mode else None

    def block_tokens(self, config: Config) -> int:
        return positive_option(config, "block-size", BLOCK_TOKENS)

    def diagnose(self, log_tail: str) -> str:
        if "MissingDependency" in log_tail or "nixl" in log_tail:
            return "pip install --no-deps nixl-cu12 numpy, in the engine's environment"
        return ""
