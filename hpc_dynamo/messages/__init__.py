"""Records that cross process borders.

`control`: MessagePack between agents and head. `run_folder`: JSON files of a run.

    head                         agent of a node
     │ ◀── Hello ──────────────── │   started, or joined by an extra job
     │ ─── HelloRequest ────────▶ │   the head does not know this connection: Hello again
     │ ◀─▶ Heartbeat ──────────── │   every second
     │ ◀── WorkerReport ───────── │   at each change of a worker's state
     │ ◀── KvEvents ───────────── │   as engines publish them
     │ ─── KvReplayRequest ─────▶ │   if batches of KV events are missing
     │ ─── SetRole ─────────────▶ │   role change
     │ ─── SetAsleep ───────────▶ │   a client puts a worker to sleep, or wakes it
     │ ─── NodesReplaced ───────▶ │   spare nodes run the workers of failed nodes
     │ ◀─▶ StartShard, StopShard, │   multi-node workers: see agent/shard_leader
     │     ShardExited            │
     │ ◀── Preempted ──────────── │   Slurm ends this extra job soon
     │ ─── StopAgent ───────────▶ │
     │ ◀── AgentStopped ───────── │   all engines of the node have exited
"""

from hpc_dynamo.histogram import Quantiles
from hpc_dynamo.messages.control import (
    ONE_CACHE,
    AgentStopped,
    ControlMessage,
    Heartbeat,
    Hello,
    HelloRequest,
    KvEvents,
    KvReplayRequest,
    NodeRecord,
    NodesReplaced,
    Preempted,
    PrefixCaches,
    Roster,
    SetAsleep,
    SetRole,
    ShardExited,
    StartShard,
    StopAgent,
    StopShard,
    WorkerReport,
    WorkerState,
    max_context_tokens,
)
from hpc_dynamo.messages.run_folder import (
    BatchSummary,
    Endpoint,
    ExtraJobState,
    ExtraJobStatus,
    JobRecord,
    ModelStatus,
    Outcome,
    PlannerStatus,
    Progress,
    RetryRound,
    RunSettings,
    Status,
    Successor,
    Traffic,
    WorkerLoad,
)

__all__ = [
    "ONE_CACHE",
    "AgentStopped",
    "BatchSummary",
    "ControlMessage",
    "Endpoint",
    "ExtraJobState",
    "ExtraJobStatus",
    "Heartbeat",
    "Hello",
    "HelloRequest",
    "JobRecord",
    "KvEvents",
    "KvReplayRequest",
    "ModelStatus",
    "NodeRecord",
    "NodesReplaced",
    "Outcome",
    "PlannerStatus",
    "Preempted",
    "PrefixCaches",
    "Progress",
    "Quantiles",
    "RetryRound",
    "Roster",
    "RunSettings",
    "SetAsleep",
    "SetRole",
    "ShardExited",
    "StartShard",
    "Status",
    "StopAgent",
    "StopShard",
    "Successor",
    "Traffic",
    "WorkerLoad",
    "WorkerReport",
    "WorkerState",
    "max_context_tokens",
]
