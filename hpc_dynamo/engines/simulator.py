"""The engine that needs no accelerator: our own simulator, which speaks any engine's dialect."""

from typing import Any

from hpc_dynamo.config import Config, KvLoadFailurePolicy, Role
from hpc_dynamo.engines.compat_checks import blocks_fit
from hpc_dynamo.engines.contract import (
    Command,
    EventEndpoints,
    Naps,
    Place,
    device_environment,
    event_endpoints,
    events_config,
    flags,
    given,
    interpreter,
    reshapes,
)
from hpc_dynamo.engines.lora import vllm_options
from hpc_dynamo.engines.options import counted
from hpc_dynamo.engines.pd_protocol import Concurrent, Dialect
from hpc_dynamo.engines.sglang import no_profile
from hpc_dynamo.engines.sglang_pd_protocol import SglangDialect
from hpc_dynamo.engines.shards import alike, node_options, spread
from hpc_dynamo.engines.trtllm_pd_protocol import TrtllmDialect
from hpc_dynamo.engines.vllm import NAPS, VLLM_METRICS
from hpc_dynamo.engines.vllm_pd_protocol import NixlDialect
from hpc_dynamo.errors import unknown_name
from hpc_dynamo.topology import Plan, Worker

STARTS = ("parts", "mpi")  # a process a node, or a world of MPI ranks as TensorRT-LLM's

BLOCK_TOKENS = 16  # the default of its --block-size

# By the names of its --dialect.
DIALECTS: dict[str, Dialect] = {
    "vllm": NixlDialect(),
    "sglang": SglangDialect(),
    "trtllm": TrtllmDialect(),
}


def spoken(config: Config) -> Dialect:
    """By engine.args.dialect. Raises ConfigError."""
    name = str(given(config).get("dialect") or "vllm")
    if name not in DIALECTS:
        raise unknown_name("engine.args.dialect", name, DIALECTS)
    return DIALECTS[name]


def started(config: Config) -> str:
    """How the parts of a worker over several nodes are. Raises ConfigError."""
    name = str(given(config).get("start") or "parts")
    if name not in STARTS:
        raise unknown_name("engine.args.start", name, STARTS)
    return name


class Simulator:
    """See engines.contract.Engine."""

    dialect = NixlDialect()
    metrics = VLLM_METRICS
    tokenizes = False  # it has a language of its own
    ports = 2  # HTTP, bootstrap server
    meeting_ports = 1
    never_ready = ()

    def check(self, config: Config, plan: Plan) -> None:
        for worker in spread(plan):
            alike("simulator", config, worker)
        started(config)
        blocks_fit(config, self.block_tokens(config))
        if isinstance(spoken(config), Concurrent):
            no_profile(config)

    def command(self, config: Config, place: Place) -> Command:
        options: dict[str, Any] = {
            "host": place.address,
            "port": place.ports[0],
            "model": config.model.served_name,
            "role": "both" if self.flexible(config) else str(place.worker.role),
            "max-num-seqs": config.engine.max_num_seqs,
            "enable-prompt-tokens-details": True,
            "kv-load-failure-policy": str(self._load_failure(config)),
            **vllm_options(config),
            **({"enable-sleep-mode": True} if config.engine.sleep_mode else {}),
            **self._parts(config, place),
        }
        if isinstance(spoken(config), Concurrent) and place.worker.role is Role.prefill:
            options["disaggregation-bootstrap-port"] = place.ports[1]
        own = {name: value for name, value in given(config).items() if name != "start"}
        endpoints = self.events(config, place)
        if endpoints:
            options["kv-events-config"] = events_config(endpoints)
        argv = (interpreter(config), "-m", "hpc_dynamo.simulator", *flags(options | own))
        env = device_environment(config, place) | config.engine.env
        return Command(argv, env | {"HPC_DYNAMO_ENGINE_KEY": place.token})

    def _load_failure(self, config: Config) -> KvLoadFailurePolicy:
        """What the engine does whose dialect is spoken: vLLM alone can recompute."""
        can = isinstance(spoken(config), NixlDialect)
        usual = KvLoadFailurePolicy.recompute if can else KvLoadFailurePolicy.fail
        return config.engine.kv_load_failure_policy or usual

    def _parts(self, config: Config, place: Place) -> dict[str, Any]:
        if not self.world(config, place.worker):
            return node_options(place)
        told = node_options(place)
        return {"mpi": True, **{name: told[name] for name in ("master-addr", "master-port")}}

    def world(self, config: Config, worker: Worker) -> bool:
        """As TensorRT-LLM's, with engine.args.start=mpi."""
        return len(worker.shards) > 1 and started(config) == "mpi"

    def events(self, config: Config, place: Place) -> EventEndpoints | None:
        if "kv-events-config" in given(config):  # the user's own
            return None
        return event_endpoints(config, place)

    def flexible(self, config: Config) -> bool:
        both = not isinstance(spoken(config), Concurrent)
        return both and reshapes(config) and not config.planner.restart_on_role_change

    def naps(self, config: Config) -> Naps | None:
        return NAPS if config.engine.sleep_mode else None

    def block_tokens(self, config: Config) -> int:
        return counted(config, "block-size", BLOCK_TOKENS)

    def advice(self, log_tail: str) -> str:
        if "MissingDependency" in log_tail or "nixl" in log_tail:
            return "pip install --no-deps nixl-cu12 numpy, in the engine's environment"
        return ""
