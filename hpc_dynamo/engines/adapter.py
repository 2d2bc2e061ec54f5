"""Interface of the engine adapters: commands, prefill/decode protocols and metrics.

Engines are processes that serve OpenAI's HTTP API. An adapter is pure: it builds commands and
rewrites request bodies. It starts and imports nothing, and reads at most the files of a model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hpc_dynamo.config import (
    Config,
    Engine,
    ParallelSizes,
    PlannerMode,
    Role,
    TopologyKind,
)
from hpc_dynamo.engines.contract import disaggregated_media
from hpc_dynamo.engines.diagnostics import find_hint
from hpc_dynamo.engines.pd_protocol import Body, PdProtocol
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.topology import Plan, Worker


@dataclass(frozen=True)
class ShardRendezvous:
    """Address at which the shards of one worker connect, on the node of the first shard."""

    address: str
    ports: tuple[int, ...]  # recently free, EngineAdapter.rendezvous_port_count of them


@dataclass(frozen=True)
class Placement:
    """Node, ports and GPUs of one engine process: a worker, or one shard of it."""

    worker: Worker
    address: str  # address of the node on the job's network
    ports: tuple[int, ...]  # recently free; the first is for HTTP
    gpus: tuple[str, ...]  # entries of CUDA_VISIBLE_DEVICES
    token: str  # bearer token of the run; goes into the environment, never into a command line
    events_folder: str = ""  # private folder for sockets and temporary files; empty: no events
    log_folder: str = ""  # logs of the run; `Command.files` are written there
    shard_index: int = 0  # index in `worker.shards`; the first shard serves HTTP
    rendezvous: ShardRendezvous | None = None  # only for a worker over several nodes
    interface: str = ""  # network interface of `address`, if known


@dataclass(frozen=True)
class EventEndpoints:
    """ZMQ endpoints of one worker's KV events.

    Each data-parallel rank has its own. Engines derive those of other ranks than 0 by a suffix, or
    by the number of a TCP port (vLLM 0.32 and SGLang 0.5.23, offset_endpoint_port).
    """

    live: str  # published as they happen; of rank 0
    replay: str  # requested after a gap; of rank 0
    dp_ranks: tuple[int, ...] = ()  # ranks that publish there; empty: the worker has only one

    def by_rank(self) -> "dict[int | None, EventEndpoints]":
        """Return the endpoints of each data-parallel rank; None stands for a worker with one."""
        if not self.dp_ranks:
            return {None: self}
        return {
            rank: EventEndpoints(_of_rank(self.live, rank), _of_rank(self.replay, rank))
            for rank in self.dp_ranks
        }


def _of_rank(endpoint: str, dp_rank: int) -> str:
    base, _, port = endpoint.rpartition(":")
    if endpoint.startswith("tcp:"):
        return f"{base}:{int(port) + dp_rank}"
    return f"{endpoint}_dp{dp_rank}" if dp_rank else endpoint


@dataclass(frozen=True)
class SleepEndpoints:
    """HTTP paths (POST) of an idle worker that release its device memory and claim it again. The
    weights are kept elsewhere meanwhile."""

    sleep: str
    wake: str


class RoleSwitch(Protocol):
    """Request (POST) by which an idle engine changes its role without a restart."""

    @property
    def path(self) -> str: ...

    @property
    def busy(self) -> str:
        """Return a part of the refusal of an engine that still has requests. It may be asked
        again; after any other refusal the engine must be restarted."""

    @property
    def peer_path(self) -> str:
        """Return the path (GET, JSON) at which a worker of the new role describes itself."""

    def body(self, role: Role, peer: Body) -> Body:
        """Return the request for the new role. `peer` is the answer to `peer_path`; empty if
        there is none."""


@dataclass(frozen=True)
class EngineCommand:
    """Command of one engine process."""

    argv: tuple[str, ...]
    env: Mapping[str, str]  # added to the cleaned environment of the agent
    # Written before the start, by name, into `Placement.log_folder`.
    files: Mapping[str, str] = field(default_factory=dict)
    # Options of srun for a container: the process then runs as a Slurm step of its own.
    container_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricNames:
    """Names of an engine's metrics; empty if it has none. Counters without `_total`."""

    running: str
    waiting: str
    kv_usage: str
    prefix_queries: str  # tokens looked up in the prefix cache
    prefix_hits: str
    prompt_tokens: str
    generation_tokens: str
    ttft: str
    itl: str
    kv_bytes: str  # histogram or counter of KV transfers, of one side
    cache_info: str  # gauge with the labels num_gpu_blocks and block_size
    kv_bytes_unit: int = 1  # bytes per unit of kv_bytes
    kv_tokens: str = ""  # gauge of the capacity of the KV cache, instead of cache_info
    kv_failures: str = ""  # counter of failed KV transfers
    path: str = "/metrics"


class PromptCheck(Protocol):
    """Check for prompts that would end the engine."""

    def refusal(self, path: str, body: Body) -> str:
        """Return why this request must not reach the engine; empty if it may."""


class EngineAdapter(ABC):
    """Base class of the adapters in `engines.ENGINES`. Defaults are those of a minimal engine.

    Methods get the configuration of one worker (`engines.for_worker`): one model, with the options
    of the worker's role.
    """

    metrics: MetricNames
    # Modules that the engine's interpreter must find; the doctor checks them.
    python_modules: tuple[str, ...] = ()
    # Substrings of the log, and what to try. Checked in order.
    known_failures: Mapping[str, str] = {}
    # Options that change speed, memory or logs, but not the answers of a batch.
    tuning_options: frozenset[str] = frozenset()
    # Options that the toolkit sets, and the field of the configuration from which: "" if there is
    # none, `FIELD=…` if the value of the option cannot be that of the field.
    controlled_options: Mapping[str, str] = {}
    # Names in `engine.args` that are no options of the engine.
    own_options: frozenset[str] = frozenset()
    # True if False gives the `--no-` form of a flag.
    negates_flags = False
    # True if /tokenize gives the token ids of the model's own tokenizer.
    tokenizes = False
    # True if prompts are not tokenized with the tokenizer.json of the model.
    own_tokenizer = False
    port_count = 1  # ports of a worker; the first is for HTTP
    rendezvous_port_count = 0  # more ports, on the first node of a multi-node worker
    # Log messages of an engine that will neither serve nor exit.
    hang_messages: tuple[str, ...] = ()

    @abstractmethod
    def pd_protocol(self, engine: Engine) -> PdProtocol:
        """Return the protocol by which a prefill and a decode worker share a request."""

    @abstractmethod
    def check(self, config: Config, plan: Plan) -> None:
        """Raise ConfigError for what this engine cannot run. Called before submission."""

    @abstractmethod
    def command(self, config: Config, placement: Placement) -> EngineCommand:
        """Return the command that serves `placement.worker` on `placement.ports[0]`, or runs
        another shard of it."""

    @abstractmethod
    def block_tokens(self, engine: Engine) -> int:
        """Return the tokens in a KV block. KV events may report another size later."""

    def is_mpi_step(self, engine: Engine, worker: Worker) -> bool:
        """Return True if the worker is one MPI world over several nodes: every rank runs the
        command of the first shard, and there are no other shards."""
        return False

    def event_endpoints(self, config: Config, placement: Placement) -> EventEndpoints | None:
        """Return where `command` makes the engine publish KV events; None if it does not."""
        return None

    def prefix_caches(self, engine: Engine, role: Role, sizes: ParallelSizes) -> PrefixCaches:
        """Return the prefix caches of a worker, and if a request can name one of them."""
        return PrefixCaches(sizes.data, steered=sizes.data == 1)

    def caches_of(self, config: Config, worker: Worker) -> PrefixCaches:
        return self.prefix_caches(config.engine, worker.role, worker.parallel)

    def serves_both_roles(self, config: Config) -> bool:
        """Return True if a worker serves both roles at any time: no restart for a role change."""
        return False

    def needs_equal_versions(self, engine: Engine) -> bool:
        """Return True if prefill and decode workers of two versions refuse each other."""
        return False

    def role_switch(self, config: Config) -> RoleSwitch | None:
        """Return the request that changes an engine's role; None if it must be restarted for it."""
        return None

    def sleep_endpoints(self, engine: Engine) -> SleepEndpoints | None:
        """Return the paths for sleep and wake; None if workers cannot sleep."""
        return None

    def sleep_obstacle(self, engine: Engine, role: Role) -> str:
        """Return why a worker with this role and `engine.version` must not sleep; empty if it may.
        An empty version is unknown."""
        return ""

    def adapter_fields(self, config: Config, adapter: str) -> Body:
        """Return the fields of a request for a LoRA adapter that replace those of the client."""
        return {}

    def prompt_check(self, config: Config) -> PromptCheck | None:
        """Return the check for prompts that would end an engine; None if engines refuse them."""
        return None

    def truncates_prompts(self, engine: Engine) -> bool:
        """Return True if the engine shortens requests that are too long for the model."""
        return False

    def disaggregated_media(self, engine: Engine) -> frozenset[str]:
        """Return the kinds of media (audio, image, video) in prompts that two workers can share."""
        return disaggregated_media(engine.name, engine.version)

    def diagnose(self, log_tail: str) -> str:
        """Return what to try, from the last lines of a failed engine's log; empty if unknown."""
        return find_hint(self.known_failures, log_tail)


def roles_can_change(config: Config) -> bool:
    """Return True if the planner may change the role of workers."""
    planned = config.planner.mode is not PlannerMode.off
    return planned and config.topology.kind is TopologyKind.disaggregated
