"""In the run folder, for the command line and for later attempts: JSON. Also what the head tells
its frontends.

Times are seconds since the epoch (`_at`) or durations (`_s`).
"""

from enum import StrEnum
from typing import Any

import msgspec

from hpc_dynamo.config import Role, Task
from hpc_dynamo.messages.control import WorkerReport


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt was launched, so that any later command finds it again."""

    launcher: str
    job_id: str
    host: str = ""  # local launcher: where the processes are
    pid: int = 0
    submitted_at: float = 0.0
    hetero_job_ids: tuple[str, ...] = ()  # jobs of other kinds of nodes, asked for with it
    enclosing_job_id: str = ""  # id of the Slurm job that the command was started in


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that the results of a run folder were made with (engines/settings.py)."""

    task: Task
    settings: dict[str, Any]  # by the dotted name of the field
    written_at: float


class RetryRound(msgspec.Struct, frozen=True, kw_only=True):
    """The latest `batch.retry_failed=true` of a run: failures of these attempts are void."""

    last_attempt: int
    requested_at: float


class ExtraJobState(StrEnum):
    """Life of a further job."""

    pending = "pending"
    running = "running"
    draining = "leaving"  # its workers get nothing new, then it ends
    ended = "ended"


class ExtraJobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A further job of an attempt, as its head last knew it."""

    number: int
    role: Role  # that its workers began in
    nodes: int
    ranks: tuple[int, ...]
    requested_at: float
    state: ExtraJobState = ExtraJobState.pending
    job_id: str = ""
    detail: str = ""  # what the scheduler says, or why it ended
    running_since: float = 0.0  # ran from then ...
    running_until: float = 0.0  # ... until then at least

    @property
    def node_hours(self) -> float:
        return self.nodes * (self.running_until - self.running_since) / 3600


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a batch, or of a profile."""

    unit: str = "requests"  # what is counted
    total: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0  # part of done: finished by earlier attempts
    running: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens that engines report as cached
    completion_tokens: int = 0
    elapsed_s: float = 0.0


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds at the middle and near the end of a distribution of `count` observations."""

    p50: float = 0.0
    p99: float = 0.0
    count: int = 0


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy one ready worker is: what the router gave it, and what its engine says."""

    rank: int
    active: int = 0  # requests that the router has on it
    served: int = 0
    running: int = 0  # by the engine's own metrics, as all below
    waiting: int = 0
    kv_usage: float = 0.0  # share of the KV cache in use
    cache_hit_rate: float = 0.0  # share of prompt tokens found in the prefix cache
    prompt_tokens: int = 0  # counted since the engine's start, as the two below
    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there
    ttft: Quantiles = Quantiles()
    itl: Quantiles = Quantiles()


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a serving head saw since its start; `rate_hz` over the last seconds."""

    requests: int = 0
    failed: int = 0
    refused: int = 0  # for overload
    active: int = 0
    queued: int = 0
    rate_hz: float = 0.0


class Successor(msgspec.Struct, frozen=True, kw_only=True):
    """The job that takes over, as the head before it sees it."""

    attempt: int
    job_id: str
    detail: str
    url: str = ""  # its base URL, while it answers
    ready: bool = False  # new requests go to it


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a serving run answers. The key is in a file, never here."""

    url: str  # base URL with /v1
    host: str  # name of the head node
    address: str  # what it listens on
    port: int
    model: str  # that it serves; the first of several
    key_file: str
    tls: bool = False
    models: tuple[str, ...] = ()  # all, where there are several


class PlannerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner last made of the load, and how many changes of role there were."""

    at: float
    rate_hz: float  # expected
    prefill: int  # workers that it wants
    decode: int
    reason: str = ""
    shortfall: str = ""  # what cannot be had
    changing: tuple[int, ...] = ()  # ranks that change their role now
    role_changes: int = 0
    failed_role_changes: int = 0


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of several models of a serving run."""

    traffic: Traffic
    lost: str = ""  # why its requests are refused from now on


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the head last knew, rewritten every second."""

    phase: str
    at: float
    detail: str = ""
    ends_at: float | None = None  # of the allocation, where Slurm tells
    workers: tuple[WorkerReport, ...] = ()
    progress: Progress = Progress()
    loads: tuple[WorkerLoad, ...] = ()  # of ready workers
    traffic: Traffic | None = None  # of a serving run
    by_model: dict[str, ModelStatus] = {}  # where there are several
    planner: PlannerStatus | None = None
    extra_jobs: tuple[
        ExtraJobStatus, ...
    ] = ()  # further jobs; of those that ended the newest, if it failed
    node_hours: float = 0.0  # of all further jobs of the run
    successor: Successor | None = None
    notices: tuple[str, ...] = ()  # notices for users, one sentence each


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a finished batch. Latencies are the engines' own."""

    progress: Progress
    seconds: float
    ttft_prefill: Quantiles = Quantiles()
    ttft_decode: Quantiles = Quantiles()
    itl: Quantiles = Quantiles()
    kv_bytes: int = 0
    decode_busy: float = 0.0  # share of the run that decode workers had work


SOME_FAILED = 4  # exit code of a finished batch with failed requests


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an attempt. `exit_code`: see cli/help.py."""

    exit_code: int
    message: str = ""
    summary: BatchSummary | None = None
    requeue: bool = False  # there is more to do, and another walltime would do it
    next_attempt: int = 0  # the attempt that goes on
