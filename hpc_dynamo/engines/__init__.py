"""The engines by name. A new one is a file here and a row in the table."""

from hpc_dynamo.config import Config
from hpc_dynamo.engines.contract import Body, Command, Dialect, Engine, EventEndpoints, Place
from hpc_dynamo.engines.simulator import Simulator, spoken
from hpc_dynamo.engines.trtllm import Trtllm
from hpc_dynamo.engines.vllm import Vllm
from hpc_dynamo.errors import unknown_name

ENGINES: dict[str, type[Engine]] = {"simulator": Simulator, "trtllm": Trtllm, "vllm": Vllm}


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


__all__ = [
    "ENGINES",
    "Body",
    "Command",
    "Dialect",
    "Engine",
    "EventEndpoints",
    "Place",
    "dialect",
    "engine",
]
