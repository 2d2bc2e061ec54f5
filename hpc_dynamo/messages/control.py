"""Messages between agents and head: tagged MessagePack, one ZMQ frame each (see wire/control).

Fields that end in `_at` are seconds since the epoch, those in `_s` durations in seconds. `rank`
is the rank of a worker, `node` the index of a node in the plan.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from hpc_dynamo.config import Role


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An agent and its node. Written to the run folder and sent to the head at the start."""

    node: int
    host: str
    address: str  # IPv4 address on the job's network
    pid: int
    log: str
    control_endpoint: str = ""  # ZMQ endpoint of the control plane; head node only
    started_at: float = 0.0
    slurm_step_id: str = ""
    faults: tuple[str, ...] = ()  # found by the preflight checks
    restart_count: int = 0  # restarts of the job by Slurm, to ignore records of earlier executions
    pid_started: int = 0  # start of the process, see process.identity.start_ticks


class Roster(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All agents of the head's job. Sent by the head to each agent that joins the bootstrap."""

    nodes: tuple[NodeRecord, ...]  # by index
    method: str  # "tcp" or "mpi"
    seconds: float  # duration of the exchange
    restart_count: int = 0  # as in the records

    @property
    def control_endpoint(self) -> str:
        return self.nodes[0].control_endpoint


class WorkerState(StrEnum):
    """State of a worker. Only a ready one receives requests."""

    starting = "starting"
    ready = "ready"
    failed = "failed"  # exited or hangs, and will be restarted
    lost = "lost"  # exited and will not be restarted
    stopped = "stopped"


class PrefixCaches(msgspec.Struct, frozen=True):
    """Prefix caches of a worker: one for each data-parallel rank."""

    count: int = 1
    steered: bool = True  # False: the engine selects the rank of each request

    @property
    def dp_ranks(self) -> tuple[int | None, ...]:
        """Return the ranks to which requests are steered; None stands for the whole worker."""
        return tuple(range(self.count)) if self.steered and self.count > 1 else (None,)


ONE_CACHE = PrefixCaches()


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """State of a worker. Sent by its agent to the head at every change."""

    rank: int
    role: Role
    node: int  # node of its first shard
    host: str
    state: WorkerState
    url: str = ""  # base URL of its HTTP API, once ready
    log: str = ""
    detail: str = ""  # error of a worker that exited
    start_s: float = 0.0  # from launch to the first generated token
    model: str = ""  # see topology.Worker
    models: tuple[str, ...] = ()  # names of the models it serves
    adapters: dict[str, str] = {}  # base model of each LoRA adapter among them
    context_tokens: int = 0  # longest sequence; 0 if unknown
    operations: tuple[str, ...] = ()  # HTTP operations for clients: `POST /v1/rerank`
    version: str = ""  # version of the engine, as it reports it
    asleep: bool = False  # put to sleep by a client; receives no requests
    caches: PrefixCaches = ONE_CACHE
    hangs: int = 0  # times that it hung and was killed; counted by its agent

    @property
    def without_operations(self) -> "WorkerReport":
        """Copy without `operations`, which are long and mostly equal for all workers."""
        return msgspec.structs.replace(self, operations=()) if self.operations else self

    @property
    def title(self) -> str:
        """Role for display, with the model in a job of several models."""
        return f"{self.model} {self.role}".lstrip()


def max_context_tokens(workers: Iterable[WorkerReport]) -> int:
    """Return the longest sequence that any ready worker accepts; 0 if unknown."""
    contexts = [w.context_tokens for w in workers if w.state is WorkerState.ready]
    return max(contexts, default=0) if all(contexts) else 0


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First message of an agent to the head, also to a head that does not know it any more.

    `workers` are the last reports of its workers. `shards` are the starts of those that have shards
    on other nodes.
    """

    node: NodeRecord
    workers: tuple[WorkerReport, ...] = ()
    shards: tuple["StartShard", ...] = ()


class HelloRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head in response to a heartbeat of an agent that it does not know, or not under
    this connection. The agent sends Hello again.
    """


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent every second by an agent, and answered by the head.

    A head that receives none for `cluster.heartbeat_timeout_s` sends no requests to the node. An
    agent that receives none for `cluster.reconnect_timeout_s` stops its engines.
    """

    node: int  # sender


class StopAgent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head: stop all engines of the node, then exit."""

    reason: str


class NodesReplaced(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head to all agents: spare nodes run the workers of failed nodes.

    Also written to the run folder, for a head that is restarted. Each message replaces the one
    before.
    """

    replacements: dict[int, int] = {}  # node of the plan -> node that runs its workers
    restart_count: int = 0  # as in the records of nodes


class AgentStopped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Last message of an agent to the head: all its engines have exited."""

    node: int


class Preempted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by an agent of an extra job, or by that of node 0: Slurm ends its job soon, so drain."""

    node: int


class SetRole(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head to a worker's agent: the worker has a new role from now on."""

    rank: int
    role: Role
    restart: bool  # restart the engine in the new role


class SetAsleep(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head to a worker's agent: the worker sleeps, or is awake again.

    The agent does not expect progress of a worker that sleeps.
    """

    rank: int
    asleep: bool


class StartShard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A multi-node worker starts: the other nodes start their shards.

    Sent by the agent of the first shard to the head, which passes it on to the other agents.
    """

    rank: int
    role: Role
    incarnation: int  # number of this start of the worker, from 1
    address: str  # rendezvous of the shards
    ports: tuple[int, ...]


class StopShard(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head to the agents of a worker's other shards: stop the shard."""

    rank: int


class ShardExited(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A shard of a multi-node worker other than the first has exited.

    Sent by its agent to the head, which passes it on to the agent of the first shard.
    """

    rank: int
    incarnation: int  # start of the worker that the shard belonged to
    detail: str  # names shard, node, exit status and log


class KvEvents(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A batch of KV events as a worker's engine published it, sent by its agent to the head."""

    rank: int
    dp_rank: int | None = None  # data-parallel rank, if the worker has several
    seq: int  # from 0 after each start of the engine; -1 with no payload ends a replay
    payload: bytes  # see kv.events


class KvReplayRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent by the head to a worker's agent: send buffered batches of KV events again."""

    rank: int
    dp_rank: int | None = None
    start: int  # first `seq` to send


ControlMessage = (
    Hello
    | HelloRequest
    | Heartbeat
    | WorkerReport
    | StartShard
    | StopShard
    | ShardExited
    | KvEvents
    | KvReplayRequest
    | SetRole
    | SetAsleep
    | NodesReplaced
    | StopAgent
    | Preempted
    | AgentStopped
)
