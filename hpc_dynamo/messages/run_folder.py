"""JSON records in the run folder, for the command line and later attempts.

The head also sends some of them to its frontends. Fields that end in `_at` are seconds since the
epoch, those in `_s` durations in seconds.
"""

from enum import StrEnum
from typing import Any

import msgspec

from hpc_dynamo.config import Role, Task
from hpc_dynamo.histogram import Quantiles
from hpc_dynamo.messages.control import WorkerReport


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Job of an attempt. Written at submission, so that later commands find the job."""

    launcher: str
    job_id: str
    host: str = ""  # local launcher: node of the processes
    pid: int = 0
    pid_started: int = 0  # start of that process, see process.identity.start_ticks
    submitted_at: float = 0.0
    hetero_job_ids: tuple[str, ...] = ()  # jobs of other hardware, submitted with it
    enclosing_job_id: str = ""  # Slurm job in which the command was run
    restart_count: int = 0  # restarts of the allocation that has the step


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that the results of a run depend on. Written by the first attempt."""

    task: Task
    settings: dict[str, Any]  # by the dotted name of the field


class RetryRound(msgspec.Struct, frozen=True, kw_only=True):
    """Latest `batch.retry_failed=true` of a run: failures of earlier attempts are void."""

    last_attempt: int  # failures up to this attempt are void


class ExtraJobState(StrEnum):
    """State of an extra job."""

    pending = "pending"  # submitted, or waiting in the scheduler's queue
    running = "running"
    draining = "draining"  # workers receive no new requests, then the job ends
    ended = "ended"


class ExtraJobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Extra job of an attempt. Written by its head to the job's folder at every change."""

    number: int
    role: Role  # in which its workers started
    nodes: int
    ranks: tuple[int, ...]
    requested_at: float
    state: ExtraJobState = ExtraJobState.pending
    job_id: str = ""
    detail: str = ""  # the scheduler's reason, or why the job ended
    running_since: float = 0.0
    running_until: float = 0.0  # last time the job was seen running

    @property
    def node_hours(self) -> float:
        return self.nodes * (self.running_until - self.running_since) / 3600


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of a batch or a profile."""

    unit: str = "requests"
    total: int = 0
    done: int = 0
    failed: int = 0
    resumed: int = 0  # part of `done`: finished by earlier attempts
    running: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens, reported as cached by engines
    completion_tokens: int = 0
    elapsed_s: float = 0.0


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Load of a ready worker. `active` and `served` are the router's counts, the rest its engine's.

    The engine's counters start at zero when it starts.
    """

    rank: int
    active: int = 0  # leased requests
    served: int = 0  # requests finished
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # share of the KV cache in use, 0 to 1
    cache_hit_rate: float = 0.0  # share of prompt tokens found in the prefix cache
    prompt_tokens: int = 0
    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there
    kv_transfer_failures: int = 0
    ttft: Quantiles = Quantiles()
    itl: Quantiles = Quantiles()


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of a serving run since its start."""

    requests: int = 0
    failed: int = 0
    refused: int = 0  # rejected because of overload
    active: int = 0
    queued: int = 0
    rate_hz: float = 0.0  # over the last seconds


class Successor(msgspec.Struct, frozen=True, kw_only=True):
    """Next job of a serving run, which takes over, as the present job sees it."""

    attempt: int  # 0 if its submission failed
    job_id: str
    detail: str
    url: str = ""  # base URL while it answers
    ready: bool = False  # receives new requests


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Address of a serving run. Written when it is ready. The API key is in `key_file` only."""

    url: str  # base URL with /v1
    host: str  # name of the head node
    address: str
    port: int
    model: str  # name of the model; the first of several
    key_file: str
    tls: bool = False
    models: tuple[str, ...] = ()  # names of several models
    serving_since: float = 0.0  # seconds since the epoch; a restarted head keeps it


class PlannerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Last decision of the planner, and its role changes so far."""

    at: float
    rate_hz: float  # expected requests per second
    prefill: int  # workers that it wants
    decode: int
    reason: str = ""
    shortfall: str = ""  # targets that cannot be met
    changing: tuple[int, ...] = ()  # ranks that change their role now
    role_changes: int = 0
    failed_role_changes: int = 0


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of several models of a serving run."""

    traffic: Traffic
    lost: str = ""  # reason why its requests are refused for good


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """State of an attempt. Rewritten by its head every second."""

    phase: str
    at: float
    detail: str = ""
    ends_at: float | None = None  # end of the allocation, if Slurm reports one
    workers: tuple[WorkerReport, ...] = ()
    progress: Progress = Progress()
    loads: tuple[WorkerLoad, ...] = ()  # ready workers only
    traffic: Traffic | None = None  # serving runs only
    by_model: dict[str, ModelStatus] = {}  # in a run of several models
    planner: PlannerStatus | None = None
    extra_jobs: tuple[ExtraJobStatus, ...] = ()  # not ended, and the newest if it failed
    node_hours: float = 0.0  # sum over all extra jobs of the run
    successor: Successor | None = None
    notices: tuple[str, ...] = ()  # for users, one sentence each


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a finished batch. Latencies are measured by the engines."""

    progress: Progress
    seconds: float
    ttft_prefill: Quantiles = Quantiles()
    ttft_decode: Quantiles = Quantiles()
    itl: Quantiles = Quantiles()
    kv_bytes: int = 0  # KV cache moved between workers
    kv_transfer_failures: int = 0  # KV transfers that failed; their requests were repeated
    decode_busy: float = 0.0  # share of the time in which decode workers had requests


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an attempt, written by its head at the end. Exit codes: see `hpc-dynamo --help`."""

    exit_code: int
    message: str = ""
    summary: BatchSummary | None = None
    requeue: bool = False  # work is left that another job can finish
    next_attempt: int = 0  # number of the attempt that continues; 0 if none
    bad_hosts: tuple[str, ...] = ()  # nodes that failed at the start; the next job excludes them
    stopped: bool = False  # ended by a signal: of a user, or of Slurm, which may requeue the job
    restart_count: int = 0  # restarts of the job by Slurm so far
