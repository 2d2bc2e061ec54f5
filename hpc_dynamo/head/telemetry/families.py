"""Every metric that the head exports: name, type, help text and labels.

To add a metric, add its family here and report its value in the module of its subject:
`requests`, `workers`, `router` or `planner`. docs/reference/metrics.md is generated from this
table. Names follow Prometheus' conventions and, where vLLM has the same metric, vLLM's name.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from prometheus_client.core import Metric

from hpc_dynamo.histogram import Histogram


class Family(NamedTuple):
    """A metric. In a job of several models, metrics of one model also have the label `model`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def sample_name(self) -> str:
        """Name of a sample in the exposition; a histogram has three, which start with it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def value(self, value: float) -> Metric:
        """Return the metric of a family without labels."""
        return self.values([((), value)])

    def values(self, rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
        """Return the metric with a sample for each row of label values and value."""
        metric = Metric(self.name, self.help, self.kind)
        for labels, value in rows:
            # Workers also have the label `model` if there are several models.
            names = (*self.labels, "model")[: len(labels)]
            metric.add_sample(self.sample_name, dict(zip(names, labels, strict=True)), value)
        return metric

    def histogram(self, observed: Histogram) -> Metric:
        """Return the metric of a histogram without labels."""
        metric = Metric(self.name, self.help, self.kind)
        for bound, count in observed.cumulative():
            metric.add_sample(f"{self.name}_bucket", {"le": bound}, count)
        metric.add_sample(f"{self.name}_count", {}, observed.count)
        metric.add_sample(f"{self.name}_sum", {}, observed.sum)
        return metric


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"hpc_dynamo_{name}", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"hpc_dynamo_{name}", "gauge", text, labels)


def _histogram(name: str, text: str) -> Family:
    return Family(f"hpc_dynamo_{name}", "histogram", text)


def _worker(name: str, text: str) -> Family:
    return _gauge(f"worker_{name}", text, "rank", "role", "node")


# Requests, counted by the frontend processes and the router.
REQUESTS = _counter("requests", "Requests answered, by path and HTTP status.", "path", "status")
REQUESTS_RUNNING = _gauge("requests_running", "Requests assigned to workers.")
REQUESTS_WAITING = _gauge("requests_waiting", "Requests queued for a worker.")
REQUESTS_REJECTED = _counter("requests_rejected", "Requests rejected because of overload.")
REQUESTS_CANCELLED = _counter("requests_cancelled", "Requests whose client disconnected.")
REQUESTS_FORWARDED = _counter("requests_forwarded", "Requests forwarded to the next job.")
REQUEST_RETRIES = _counter("request_retries", "Attempts to run a request on another worker.")
STREAM_MIGRATIONS = _counter(
    "stream_migrations", "Streams whose worker failed, by the outcome on another worker.", "outcome"
)
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens counted before routing.")
HTTP_REJECTIONS = _counter(
    "http_rejections",
    "Requests rejected before they were read, by status; `connections`: closed at a limit.",
    "reason",
)
OPEN_CONNECTIONS = _gauge("open_connections", "Open connections of clients.")
DEFECTS = _counter(
    "defects",
    "Exceptions that ended one request or message only; see the logs of head and frontends.",
    "process",
)
TASKS = _gauge("asyncio_tasks", "Tasks of the head, and of all frontends together.", "process")
TTFT = _histogram("time_to_first_token_seconds", "Time to the first bytes of an answer.")
ITL = _histogram(
    "inter_token_latency_seconds",
    "Time between two tokens of a streamed answer; between pieces if it has no usage.",
)
E2E_LATENCY = _histogram("e2e_request_latency_seconds", "Time to the end of an answer.")

# Workers, reported by their engines and the router.
WORKER_READY = _worker("ready", "1 if the worker receives requests, else 0.")
WORKER_HANGS = _counter(
    "worker_hangs", "Times that the worker was killed because it hung.", "rank", "role", "node"
)
WORKER_TRANSFER_FAILURES = _counter(
    "worker_kv_transfer_failures",
    "Failed KV transfers since the start of the engine.",
    *("rank", "role", "node"),
)
WORKER_ACTIVE = _worker("requests_active", "Requests assigned by the router.")
WORKER_RUNNING = _worker("requests_running", "Requests that the engine runs.")
WORKER_WAITING = _worker("requests_waiting", "Requests queued in the engine.")
WORKER_KV_USAGE = _worker("kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1.")
WORKER_HITS = _worker("prefix_cache_hit_ratio", "Share of prompt tokens cached, 0 to 1.")

# The router's decisions and its view of the KV caches.
DECISIONS = _counter("router_decisions", "Requests assigned to a worker.", "rank", "role", "policy")
PREFILLS = _counter("router_prefills", "Prompts, by the reason for their worker.", "reason")
PROMPT_BLOCKS = _counter("router_prompt_blocks", "KV blocks of all routed prompts.")
CACHED_BLOCKS = _counter("router_cached_prompt_blocks", "Blocks cached on the selected worker.")
HIT_RATIO = _gauge("router_cache_hit_ratio", "Cached share of all prompt blocks, 0 to 1.")
DECISION_TIME = _histogram("router_decision_seconds", "Time to select the workers of a request.")
TRANSFER_COST = _gauge("router_transfer_cost_tokens", "Cost of a KV transfer in prompt tokens.")
INDEX_BLOCKS = _gauge("router_index_blocks", "Known cached blocks, by their source.", "source")
IGNORED_BLOCKS = _counter("router_ignored_blocks", "Blocks in KV events not indexed.", "reason")
EVENT_LAG = _gauge("router_kv_event_lag_seconds", "Delay of the last KV event until its indexing.")
EVENT_BATCHES = _counter("router_kv_event_batches", "Batches of KV events received.")
EVENT_GAPS = _counter("router_kv_event_gaps", "Missing batches of KV events, requested again.")
INDEX_RESETS = _counter("router_kv_index_resets", "Indexes of a worker dropped after lost events.")
BAD_EVENTS = _counter("router_kv_events_invalid", "Batches of KV events that cannot be read.")

# The planner's decisions.
TARGET_WORKERS = _gauge("planner_target_workers", "Workers wanted in a role.", "role")
EXPECTED_RATE = _gauge("planner_expected_requests_per_second", "Expected request rate.")
ROLE_CHANGING = _gauge("planner_role_changes_in_progress", "Workers changing their role.")
ROLE_CHANGES = _counter("planner_role_changes", "Completed role changes.")
ROLE_CHANGE_FAILURES = _counter("planner_role_change_failures", "Failed role changes.")

FAMILIES = tuple(family for family in globals().values() if isinstance(family, Family))
