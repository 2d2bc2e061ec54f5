"""Between the agents and the head: tagged MessagePack, a frame each (see wire/control).

Times are seconds since the epoch (`_at`) or durations (`_s`).
"""

from enum import StrEnum

import msgspec

from hpc_dynamo.config import Role


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One agent: what the others need to find it, and a person to read its log."""

    node: int  # index in the plan
    host: str
    address: str  # on the job's network
    pid: int
    log: str
    control_endpoint: str = ""  # endpoint of the control plane; only the head node's is set
    started_at: float = 0.0
    slurm_step_id: str = ""  # Slurm's step id
    faults: tuple[str, ...] = ()  # of its node, found before anything was started


class Roster(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Everyone, after the bootstrap. `method` and `seconds` tell how it was gathered."""

    nodes: tuple[NodeRecord, ...]
    method: str
    seconds: float

    @property
    def control_endpoint(self) -> str:
        return self.nodes[0].control_endpoint


class WorkerState(StrEnum):
    """Life of a worker; only a ready one is sent requests."""

    starting = "starting"
    ready = "ready"
    failed = "failed"  # died, and will be started again
    lost = "lost"  # died for good
    stopped = "stopped"


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An agent tells the head how one of its workers is."""

    rank: int
    role: Role
    node: int
    host: str
    state: WorkerState
    url: str = ""
    log: str = ""
    detail: str = ""
    start_s: float = 0.0  # from launch to the first served token
    model: str = ""  # whose worker it is, see topology.Worker
    models: tuple[str, ...] = ()  # that it serves, by their names
    adapters: dict[str, str] = {}  # which of them are LoRA adapters, and of what
    context_tokens: int = 0  # of its longest sequence; 0: not known
    operations: tuple[str, ...] = ()  # of its HTTP API, usable by clients: `POST /v1/rerank`
    asleep: bool = False  # put to sleep by a client: it is given nothing until it is woken

    @property
    def without_operations(self) -> "WorkerReport":
        """Return a copy without `operations`, which are long and mostly equal for all workers."""
        return msgspec.structs.replace(self, operations=()) if self.operations else self

    @property
    def title(self) -> str:
        """For people: its role, and its model where there are several."""
        return f"{self.model} {self.role}".lstrip()


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An agent presents itself."""

    node: NodeRecord


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by both sides; silence beyond the deadline means that the other is gone."""

    node: int


class StopAgent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The head ends the job."""

    reason: str


class SetRole(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The head gives a worker another role; with `restart` its engine is started anew in it."""

    rank: int
    role: Role
    restart: bool


class Preempted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An agent of a further job: Slurm ends it soon, so give it nothing new."""

    node: int


class AgentStopped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An agent has ended all its workers."""

    node: int


class StartShard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first part of a worker over several nodes is about to start; the others are to meet it.

    From its agent to the head, and from there to the agents of the others. `life` counts the
    starts of that worker.
    """

    rank: int
    role: Role
    incarnation: int
    address: str  # where the parts meet
    ports: tuple[int, ...]


class StopShard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The head to the agents of a worker's further parts: they are not needed any more."""

    rank: int


class ShardExited(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A further part of a worker has ended; from its agent to the head, from there to the agent
    of the first, which ends that life of the worker."""

    rank: int
    incarnation: int
    detail: str  # which part, where, how, and its log


class KvEvents(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A batch of KV events as a worker's engine published it (see kv_events), by its number.

    Numbers begin with 0 in each life of a worker; what is missing may be asked for. A number of
    -1 with nothing in it ends a replay.
    """

    rank: int
    seq: int
    payload: bytes


class KvReplayRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The head missed batches of a worker: send what its engine still has from `start` on."""

    rank: int
    start: int


ControlMessage = (
    Hello
    | Heartbeat
    | WorkerReport
    | StartShard
    | StopShard
    | ShardExited
    | KvEvents
    | KvReplayRequest
    | SetRole
    | StopAgent
    | Preempted
    | AgentStopped
)
