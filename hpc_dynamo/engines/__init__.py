"""The engines by name. A new one is a file here and a row in the table."""

from dataclasses import replace

from hpc_dynamo.config import Config, Kind
from hpc_dynamo.engines import container
from hpc_dynamo.engines.container import contained
from hpc_dynamo.engines.contract import (
    Body,
    Command,
    Concurrent,
    Dialect,
    Engine,
    EventEndpoints,
    Meeting,
    Place,
    Sequential,
    probing,
)
from hpc_dynamo.engines.sglang import Sglang
from hpc_dynamo.engines.simulator import DIALECTS, Simulator, spoken
from hpc_dynamo.engines.trtllm import Trtllm
from hpc_dynamo.engines.vllm import Vllm
from hpc_dynamo.errors import unknown_name

ENGINES: dict[str, type[Engine]] = {
    "sglang": Sglang,
    "simulator": Simulator,
    "trtllm": Trtllm,
    "vllm": Vllm,
}


def engine(name: str) -> Engine:
    """The adapter called `name`. Raises ConfigError listing the known ones."""
    if name not in ENGINES:
        raise unknown_name("engine.name", name, ENGINES)
    return ENGINES[name]()


def dialect(config: Config) -> Dialect:
    """What the engines of this configuration speak: the simulator may speak any."""
    if config.engine.name == "simulator":
        return spoken(config)
    return engine(config.engine.name).dialect


def advice(config: Config, log_tail: str) -> str:
    """What to try, from the last lines of a dead engine's log; empty where unknown."""
    return container.advice(config, log_tail) or engine(config.engine.name).advice(log_tail)


def suited(config: Config) -> Config:
    """With a router that asks of the engines what they can: of those that always share a
    request none computes a prompt alone."""
    shared = isinstance(dialect(config), Concurrent)
    if not (shared and config.topology.kind is Kind.disaggregated):
        return config
    return replace(config, router=replace(config.router, local_prefill=False))


__all__ = [
    "DIALECTS",
    "ENGINES",
    "Body",
    "Command",
    "Concurrent",
    "Dialect",
    "Engine",
    "EventEndpoints",
    "Meeting",
    "Place",
    "Sequential",
    "advice",
    "contained",
    "dialect",
    "engine",
    "probing",
    "suited",
]
