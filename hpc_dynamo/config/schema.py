"""The configuration of one run: frozen dataclasses, the schema that `conf/` is checked against.

Composed once on the login node, written into the run folder as JSON, read from there by
every process of the job. Defaults here are the defaults of the product; files in `conf/`
only choose. Fields carry their units; `None` means "derive it".
"""

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from hpc_dynamo.config.cluster import Cluster
from hpc_dynamo.config.container import Container
from hpc_dynamo.config.planner import Planner
from hpc_dynamo.config.router import Router
from hpc_dynamo.config.simulate import Simulate


class Task(StrEnum):
    """What a job is for."""

    batch = "batch"
    serve = "serve"
    profile = "profile"


class Role(StrEnum):
    """What a worker does for a request."""

    prefill = "prefill"
    decode = "decode"
    aggregated = "aggregated"


class TopologyKind(StrEnum):
    """Shape of a topology."""

    aggregated = "aggregated"
    disaggregated = "disaggregated"


class KvLoadFailurePolicy(StrEnum):
    """What a decode worker does with a request whose KV cache did not arrive."""

    recompute = "recompute"  # it computes the prompt itself
    fail = "fail"  # it refuses, and another pair of workers is tried


class Device(StrEnum):
    """What an engine computes on."""

    cuda = "cuda"
    cpu = "cpu"


@dataclass(frozen=True)
class Pool:
    """The workers of one role. A worker takes tensor x pipeline x data parallel GPUs."""

    workers: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    hardware: str = ""  # kind of its nodes, of cluster.hardware; empty: the cluster's own

    @property
    def gpus(self) -> int:
        """GPUs of one worker, on an engine that computes on GPUs."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


@dataclass(frozen=True)
class Topology:
    """How many workers of which role and shape. `nodes=None`: the fewest that hold them."""

    kind: TopologyKind = TopologyKind.aggregated
    nodes: int | None = None
    aggregated: Pool = Pool()
    prefill: Pool = Pool()
    decode: Pool = Pool()

    @property
    def pools(self) -> tuple[tuple[Role, Pool], ...]:
        """The pools that this kind of topology runs, prefill first."""
        if self.kind is TopologyKind.aggregated:
            return ((Role.aggregated, self.aggregated),)
        return ((Role.prefill, self.prefill), (Role.decode, self.decode))


@dataclass(frozen=True)
class RoleOptions:
    """Options of the engine's own that one role gets on top of all roles'; they win."""

    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """One inference engine and how its processes are run."""

    name: str = "vllm"
    device: Device = Device.cuda
    python: str = ""  # of the environment or image that has it; empty: ours, the image's python3
    container: Container = field(default_factory=Container)
    args: dict[str, Any] = field(default_factory=dict)  # the engine's own options, passed through
    env: dict[str, str] = field(default_factory=dict)
    prefill: RoleOptions = field(default_factory=RoleOptions)
    decode: RoleOptions = field(default_factory=RoleOptions)
    aggregated: RoleOptions = field(default_factory=RoleOptions)
    max_num_seqs: int = 256  # sequences that one worker decodes at a time
    cpus: int = 4  # for each GPU of a worker; for the whole worker where it uses none
    memory_gb: float = 32.0  # host memory, counted like cpus
    ready_timeout_s: float = 1800.0
    stop_timeout_s: float = 20.0
    max_restarts: int = 2  # a worker that dies is started again this often
    sleep_mode: bool = False  # workers may be put to sleep: the device's memory is free meanwhile
    kv_load_failure_policy: KvLoadFailurePolicy | None = (
        None  # None: recompute, where the engine can
    )

    def role_options(self, role: Role) -> RoleOptions:
        """What workers of a role get on top of `args` and `env`."""
        return {
            Role.prefill: self.prefill,
            Role.decode: self.decode,
            Role.aggregated: self.aggregated,
        }[role]


@dataclass(frozen=True)
class Model:
    """What is served. `path` is a folder or a hub id, `name` what clients call it; `lora` are
    adapters of it, each a folder or hub id, by the names that clients call them."""

    path: str = ""
    name: str = ""
    lora: dict[str, str] = field(default_factory=dict)

    @property
    def served_name(self) -> str:
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def alias(self) -> str:
        """Return the full hub id, `org/name`, if the model has one that is not its served name."""
        hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.path)
        return self.path if hub_id and self.path != self.served_name else ""


@dataclass(frozen=True)
class Batch:
    """An offline run over a file of prompts."""

    concurrency: int | None = None  # None: what fills every decode worker
    max_retries: int = 3
    request_timeout_s: float = 3600.0
    requeue: bool = True  # at the end of the walltime, until all is done
    retry_failed: bool = False  # rerun the requests in errors.jsonl; answers are kept
    body_defaults: dict[str, Any] = field(default_factory=dict)  # merged under each request's body


@dataclass(frozen=True)
class Serve:
    """The OpenAI endpoint of a serving run."""

    host: str | None = None  # to listen on; None: the head node's address on the job's network
    port: int = 0  # 0: any free one, announced in the run folder
    frontend_processes: int | None = (
        None  # processes that share the port; None: by the node's cores
    )
    max_queued_requests: int = 1024  # requests that wait for a worker; more are refused with 429
    queue_timeout_s: float = 60.0
    max_requests_per_worker: int | None = (
        None  # given to a worker at a time; None: 2 x max_num_seqs
    )
    request_timeout_s: float = 3600.0
    max_body_mb: float = 32.0
    max_buffered_mb: float = 512.0  # bodies held by one frontend process, in all
    api_key_file: str = ""  # holds the endpoint's API key; empty: a random one for the run
    # Web pages that may call the endpoint (CORS): `https://host[:port]`, or `*` for all.
    allowed_origins: tuple[str, ...] = ()
    tls_cert: str = ""  # PEM files; both or none
    tls_key: str = ""


@dataclass(frozen=True)
class Route:
    """Engines that somebody else started, by their base URLs; empty for those that we start."""

    workers: tuple[str, ...] = ()  # that do all of a request ...
    prefill: tuple[str, ...] = ()  # ... or those that share them
    decode: tuple[str, ...] = ()
    api_key_file: str = ""  # holds the bearer key that the engines ask for; empty: they want none
    events: tuple[str, ...] = ()  # of each, prefill first: live|replay; empty: guessed
    peers: tuple[str, ...] = ()  # other heads before the same engines

    @property
    def engines(self) -> tuple[tuple[Role, str], ...]:
        """Role and URL of each by its rank, prefill first."""
        roles = ((Role.aggregated, self.workers), (Role.prefill, self.prefill))
        return tuple(
            (role, url) for role, urls in (*roles, (Role.decode, self.decode)) for url in urls
        )


@dataclass(frozen=True)
class ServedModel:
    """One of several models of a job: its folder or hub id, and what is its workers' alone."""

    path: str = ""
    engine: Engine = field(default_factory=Engine)
    topology: Topology = Topology()
    router: Router = field(default_factory=Router)
    lora: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything about one run."""

    task: Task = Task.batch  # set by the verb
    name: str = ""  # of the run; empty: from the input's file name
    runs_dir: str = "runs"  # folder of all runs; on Slurm it must be visible on every node
    input: str = ""
    overwrite: bool = False  # start from the beginning; earlier results move to NAME.old-1
    engine: Engine = Engine()
    model: Model = Model()
    models: dict[str, ServedModel] = field(default_factory=dict)  # by name; empty: `model` alone
    topology: Topology = Topology()
    cluster: Cluster = field(default_factory=Cluster)
    batch: Batch = Batch()
    router: Router = field(default_factory=Router)
    serve: Serve = Serve()
    route: Route = Route()
    planner: Planner = field(default_factory=Planner)
    simulate: Simulate = field(default_factory=Simulate)

    def for_model(self, model: str) -> "Config":
        """As the workers of one model see it: a run of that model alone. Of a run of one model,
        whose name in plans and reports is empty, itself."""
        if not self.models:
            return self
        own = self.models[model]
        return replace(
            self,
            model=Model(path=own.path, name=model, lora=own.lora),
            models={},
            engine=own.engine,
            topology=own.topology,
            router=own.router,
        )

    @property
    def by_model(self) -> dict[str, "Config"]:
        """`of` every model, by name."""
        return {name: self.for_model(name) for name in self.models or ("",)}

    @property
    def served_name(self) -> str:
        """What requests call the model; empty where only the engines know it."""
        return self.model.name if self.route.engines else self.model.served_name
