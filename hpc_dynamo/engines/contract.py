"""What the rest of the toolkit knows of an engine: a command, a dialect, names of metrics.

Engines are processes that speak OpenAI's HTTP. Adapters are pure: they build commands and
rewrite request bodies, and start, import or call nothing; of files they read at most a model's.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hpc_dynamo.config import (
    Config,
    ContainerKind,
    Device,
    PlannerMode,
    Policy,
    TopologyKind,
)
from hpc_dynamo.engines.option_names import MULTI_VALUE
from hpc_dynamo.engines.pd_protocol import PdProtocol
from hpc_dynamo.topology import Plan, Worker

# That an engine keeps for replays. vLLM's replay socket drops, in silence, what goes beyond
# ZMQ's queue of 1,000; of its own 10,000 steps a busy machine lost up to a third.
EVENT_BUFFER_STEPS = 900


@dataclass(frozen=True)
class ShardRendezvous:
    """Where the parts of one worker meet: on the node of the first, which listens there."""

    address: str
    ports: tuple[int, ...]  # free a moment ago, as many as Engine.meeting_ports


@dataclass(frozen=True)
class Placement:
    """Where one worker is about to run, or the part of it that is on one node. `gpus` are what
    CUDA_VISIBLE_DEVICES takes."""

    worker: Worker
    address: str
    ports: tuple[int, ...]  # free a moment ago; the first is for HTTP
    gpus: tuple[str, ...]
    token: str  # the run's bearer token: to be given by environment, never on a command line
    events_folder: str = ""  # a private folder for sockets of KV events; empty: none are wanted
    log_folder: str = ""  # where the files of a command will lie: the run's logs
    shard_index: int = 0  # which of the worker's shards; the first serves its HTTP
    rendezvous: ShardRendezvous | None = None  # of a worker over several nodes
    interface: str = ""  # network interface of `address`, where it is known


@dataclass(frozen=True)
class EventEndpoints:
    """ZMQ endpoints of one worker: where it publishes KV events, and where it replays them."""

    live: str
    replay: str


@dataclass(frozen=True)
class SleepEndpoints:
    """Paths (POST) of a worker that has nothing to do: it gives its device's memory back, keeping
    the weights elsewhere, and takes it again."""

    sleep: str
    wake: str


@dataclass(frozen=True)
class Command:
    """A process to start. `env` is added to the cleaned environment of the agent.

    `files` are written before the start, by name into `Place.folder`. `box` are srun's options for
    a container: the process is then to be a step of its own.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    container_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricNames:
    """Names under `path`, in one vocabulary, empty for none. Counters without `_total`."""

    running: str
    waiting: str
    kv_usage: str
    prefix_queries: str  # tokens looked up in the prefix cache
    prefix_hits: str
    prompt_tokens: str
    generation_tokens: str
    ttft: str
    itl: str
    kv_bytes: str  # histogram or counter of bytes that NIXL moved to this worker
    cache_info: str  # gauge whose labels num_gpu_blocks and block_size tell the KV cache's size
    path: str = "/metrics"


class Engine(Protocol):
    """An adapter. The table of all is `engines.ENGINES`."""

    @property
    def pd_protocol(self) -> PdProtocol: ...

    @property
    def metrics(self) -> MetricNames: ...

    @property
    def tokenizes(self) -> bool:
        """Whether /tokenize gives the ids of the model's own tokenizer."""

    @property
    def port_count(self) -> int:
        """How many free ports one worker needs; the first is for HTTP."""

    @property
    def rendezvous_port_count(self) -> int:
        """How many more it needs where it is spread over nodes, on the first of them."""

    @property
    def hang_messages(self) -> tuple[str, ...]:
        """What the log says when the engine will neither serve nor exit."""

    def check(self, config: Config, plan: Plan) -> None:
        """Refuse what this engine cannot run, before submission. Raises ConfigError."""

    def command(self, config: Config, place: Placement) -> Command:
        """The process that serves `place.worker` on `place.ports[0]`, or that is a further part
        of it."""

    def is_mpi_step(self, config: Config, worker: Worker) -> bool:
        """Whether the ranks of this worker, which is spread over nodes, are one MPI world: each
        runs the first part's command, and there are no further parts."""

    def event_endpoints(self, config: Config, place: Placement) -> EventEndpoints | None:
        """Where `command` makes the engine tell of its KV cache; None where it does not, as
        further parts never do."""

    def serves_both_roles(self, config: Config) -> bool:
        """Whether `command` makes an engine that prefills as well as it decodes, so that its
        role is the router's affair alone."""

    def sleep_endpoints(self, config: Config) -> SleepEndpoints | None:
        """How workers are put to sleep and woken; None where they cannot."""

    def block_tokens(self, config: Config) -> int:
        """Tokens in a block of the engine's KV cache, as far as the configuration tells."""

    def diagnose(self, log_tail: str) -> str:
        """What to try, from the last lines of a dead engine's log; empty where unknown."""


def roles_can_change(config: Config) -> bool:
    """Whether workers may change their role while they run."""
    planned = config.planner.mode is not PlannerMode.off
    return planned and config.topology.kind is TopologyKind.disaggregated


def command_line(args: Mapping[str, Any]) -> list[str]:
    """Options of a command line from a mapping: `{max-model-len: 2048}` → `--max-model-len 2048`.

    True gives the bare flag, False its `--no-` form, None leaves it out, mappings become JSON,
    lists several arguments. A text is one argument, unless the option takes several and the text
    is a list in JSON.
    """
    out = list[str]()
    for name, written in args.items():
        option = name.replace("_", "-")
        value = json_list(written) if option in MULTI_VALUE else written
        match value:
            case None:
                continue
            case True:
                out.append(f"--{option}")
            case False:
                out.append(f"--no-{option}")
            case Mapping():
                out += [f"--{option}", json.dumps(value)]
            case list() | tuple():
                out += [f"--{option}", *map(str, value)]
            case _:
                out += [f"--{option}", str(value)]
    return out


def json_list(value: Any) -> Any:
    """Return the elements of a text that is a list in JSON, numbers as they were written; any other
    value unchanged."""
    if not (isinstance(value, str) and value.startswith("[")):
        return value
    try:
        found = json.loads(value, parse_int=str, parse_float=str)
    except ValueError:
        return value
    return [each if isinstance(each, str) else json.dumps(each) for each in found]


def parse_json(value: Any) -> Any:
    """Return the content of a text that is an object or list in JSON; any other value unchanged."""
    if not (isinstance(value, str) and value[:1] in ("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def uses_kv_events(config: Config) -> bool:
    """Whether the router takes in what engines tell of their KV caches."""
    return config.router.kv_events and config.router.policy is Policy.kv


def ipc_event_endpoints(config: Config, place: Placement) -> EventEndpoints | None:
    """In the private folder of `place`; None where the router does not look at KV caches."""
    if not (uses_kv_events(config) and place.events_folder) or place.shard_index:
        return None
    base = f"ipc://{place.events_folder}/{place.worker.rank}"
    return EventEndpoints(base, f"{base}r")


def kv_events_config(endpoints: EventEndpoints) -> dict[str, Any]:
    """The value of vLLM's --kv-events-config."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": endpoints.live,
        "replay_endpoint": endpoints.replay,
        "buffer_steps": EVENT_BUFFER_STEPS,
    }


def user_options(config: Config) -> dict[str, Any]:
    """The engine's own options as the user wrote them, by their names on a command line."""
    return {name.replace("_", "-"): value for name, value in config.engine.args.items()}


def python_executable(config: Config) -> str:
    """Of the engine: the user's, else ours, which a container does not have."""
    contained = config.engine.container.kind is not ContainerKind.none
    return config.engine.python or ("python3" if contained else sys.executable)


def device_environment(config: Config, place: Placement) -> dict[str, str]:
    """Binds a worker to its GPUs, and hides all of them from one that computes on the CPU.

    UCX listens on every interface it finds; a CPU worker of a job on loopback needs that alone.
    """
    if config.engine.device is Device.cuda:
        return {"CUDA_VISIBLE_DEVICES": ",".join(place.gpus)}
    loopback = {"UCX_NET_DEVICES": "lo"} if place.address.startswith("127.") else {}
    return {"CUDA_VISIBLE_DEVICES": ""} | loopback
