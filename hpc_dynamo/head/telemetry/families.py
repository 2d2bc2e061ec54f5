"""Every metric that the head exports: name, type, help text and labels.

To add a metric, add its family here and report its value in the module of its subject:
`requests`, `workers`, `router` or `planner`. docs/reference/metrics.md is generated from this
table. Names follow Prometheus' conventions and, where vLLM has the same metric, vLLM's name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.core import Metric

from hpc_dynamo.histogram import Histogram

PREFIX = "hpc_dynamo"


class Kind(StrEnum):
    """Type of a metric, see Prometheus' exposition format."""

    counter = "counter"
    gauge = "gauge"
    histogram = "histogram"


@dataclass(frozen=True)
class Family:
    """A metric. In a job of several models, metrics of one model also have the label `model`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def sample_name(self) -> str:
        """Name of a sample in the exposition; a histogram has three, which start with it."""
        return f"{self.name}_total" if self.kind is Kind.counter else self.name

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
    return Family(f"{PREFIX}_{name}", Kind.counter, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"{PREFIX}_{name}", Kind.gauge, text, labels)


def _histogram(name: str, text: str) -> Family:
    return Family(f"{PREFIX}_{name}", Kind.histogram, text)


_WORKER = ("rank", "role", "node")

# Requests, counted by the frontend processes and the router.
REQUESTS = _counter("requests", "Requests answered, by path and HTTP status.", "path", "status")
REQUESTS_RUNNING = _gauge("requests_running", "Requests assigned to workers.")
REQUESTS_WAITING = _gauge("requests_waiting", "Requests queued for a worker.")
REQUESTS_REJECTED = _counter("requests_rejected", "Requests rejected because of overload.")
REQUESTS_CANCELLED = _counter("requests_cancelled", "Requests whose client disconnected.")
REQUESTS_FORWARDED = _counter("requests_forwarded", "Requests forwarded to the next job.")
REQUEST_RETRIES = _counter("request_retries", "Attempts to run a request on another worker.")
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens counted before routing.")
OPEN_CONNECTIONS = _gauge("open_connections", "Open connections of clients.")
TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds", "Time from a request to the first bytes of its answer."
)
INTER_TOKEN_LATENCY = _histogram(
    "inter_token_latency_seconds", "Time between two pieces of a streamed answer."
)
REQUEST_LATENCY = _histogram(
    "e2e_request_latency_seconds", "Time from a request to the end of its answer."
)

# Workers, reported by their engines and the router.
WORKER_READY = _gauge("worker_ready", "1 if the worker receives requests, else 0.", *_WORKER)
WORKER_ACTIVE = _gauge("worker_requests_active", "Requests assigned by the router.", *_WORKER)
WORKER_RUNNING = _gauge("worker_requests_running", "Requests that the engine runs.", *_WORKER)
WORKER_WAITING = _gauge("worker_requests_waiting", "Requests queued in the engine.", *_WORKER)
WORKER_KV_USAGE = _gauge(
    "worker_kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1.", *_WORKER
)
WORKER_HIT_RATIO = _gauge(
    "worker_prefix_cache_hit_ratio",
    "Share of prompt tokens found in the engine's prefix cache since its start, 0 to 1.",
    *_WORKER,
)

# The router's decisions and its view of the KV caches.
ROUTER_DECISIONS = _counter(
    "router_decisions", "Requests assigned to a worker.", "rank", "role", "policy"
)
ROUTER_PREFILLS = _counter(
    "router_prefills", "Prompts by the reason for where they are computed.", "reason"
)
ROUTER_PROMPT_BLOCKS = _counter("router_prompt_blocks", "KV blocks of all routed prompts.")
ROUTER_CACHED_BLOCKS = _counter(
    "router_cached_prompt_blocks", "Prompt blocks already cached on the selected worker."
)
ROUTER_HIT_RATIO = _gauge(
    "router_cache_hit_ratio", "Share of prompt blocks cached on the selected worker, 0 to 1."
)
ROUTER_DECISION_TIME = _histogram(
    "router_decision_seconds", "Time to select the workers of a request."
)
ROUTER_TRANSFER_COST = _gauge(
    "router_transfer_cost_tokens",
    "Cost of a KV transfer, as the number of prompt tokens computed in the same time.",
)
ROUTER_INDEX_BLOCKS = _gauge(
    "router_index_blocks",
    "Cached blocks known to the router, from engine events or from its own decisions.",
    "source",
)
ROUTER_IGNORED_BLOCKS = _counter(
    "router_ignored_blocks", "Blocks in KV events that the index did not take.", "reason"
)
ROUTER_EVENT_LAG = _gauge(
    "router_kv_event_lag_seconds", "Time from the last KV event to its entry in the index."
)
ROUTER_EVENT_BATCHES = _counter("router_kv_event_batches", "Batches of KV events received.")
ROUTER_EVENT_GAPS = _counter(
    "router_kv_event_gaps", "Batches of KV events found missing and requested again."
)
ROUTER_RESYNCS = _counter(
    "router_kv_index_resets", "Workers whose blocks were dropped because KV events were lost."
)
ROUTER_BAD_EVENTS = _counter("router_kv_events_invalid", "Batches of KV events not readable.")

# The planner's decisions.
PLANNER_TARGET_WORKERS = _gauge(
    "planner_target_workers", "Workers that the planner wants in a role.", "role"
)
PLANNER_EXPECTED_RATE = _gauge(
    "planner_expected_requests_per_second", "Request rate that the planner expects."
)
PLANNER_CHANGING = _gauge("planner_role_changes_in_progress", "Workers changing their role.")
PLANNER_CHANGES = _counter("planner_role_changes", "Completed role changes.")
PLANNER_FAILED_CHANGES = _counter("planner_role_change_failures", "Failed role changes.")

FAMILIES = tuple(family for family in globals().values() if isinstance(family, Family))
