"""The job's own figures in Prometheus' text format 0.0.4."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from hpc_dynamo.frontend.stats import BOUNDS_S, Buckets, Stats
from hpc_dynamo.head.telemetry import planner
from hpc_dynamo.head.telemetry import router as routing
from hpc_dynamo.head.telemetry.families import counters, histogram, labelled
from hpc_dynamo.messages import PlannerStatus, Traffic, WorkerLoad, WorkerReport
from hpc_dynamo.router import Router


@dataclass(frozen=True)
class ModelMetrics:
    """What there is to tell of one model."""

    stats: Stats
    traffic: Traffic
    router: Router

    def metrics(self) -> Iterable[Metric]:
        yield from _frontend(self.stats)
        yield from _traffic(self.traffic)
        yield from routing.metrics(self.router)


def exposition(
    parts: Mapping[str, ModelMetrics],
    rest: Stats,
    loads: Iterable[WorkerLoad],
    workers: Iterable[WorkerReport],
    planned: PlannerStatus | None,
) -> str:
    """Everything under `hpc_dynamo_`; engines' own metrics stay with the engines.

    `parts` by model; `rest` is of no model, or of the only one. Figures of one of several models
    have its name as a label.
    """

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            of = {model: part.metrics() for model, part in parts.items()}
            yield from labelled(of if "" in parts else {"": _frontend(rest), **of})
            yield from _process(rest)
            yield from _workers(loads, workers)
            yield from planner.metrics(planned)

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry).decode()


def _frontend(stats: Stats) -> Iterable[Metric]:
    answers = CounterMetricFamily(
        "hpc_dynamo_requests", "answers by path and status", labels=["path", "status"]
    )
    for key, count in sorted(stats.answers.items()):
        answers.add_metric(key.split(" "), count)
    yield answers
    counted = {
        "retried": (stats.retried, "tries on another worker"),
        "prompt_tokens": (stats.prompt_tokens, "prompt tokens counted before routing"),
    }
    yield from counters("hpc_dynamo", counted)
    yield _seconds("ttft_seconds", "until the first bytes of an answer", stats.ttft)
    yield _seconds("itl_seconds", "between pieces of a stream", stats.itl)
    yield _seconds("request_seconds", "until the end of an answer", stats.seconds)


def _traffic(traffic: Traffic) -> Iterable[Metric]:
    refused = {"refused": (traffic.refused, "requests refused for overload")}
    yield from counters("hpc_dynamo", refused)
    active, queued = "requests on workers", "requests that wait for a worker"
    yield GaugeMetricFamily("hpc_dynamo_active", active, value=traffic.active)
    yield GaugeMetricFamily("hpc_dynamo_queued", queued, value=traffic.queued)


def _process(stats: Stats) -> Iterable[Metric]:
    """Of frontends as such."""
    counted = {
        "cancelled": (stats.cancelled, "requests whose client went away"),
        "forwarded": (stats.forwarded, "requests passed on to the job that takes over"),
    }
    yield from counters("hpc_dynamo", counted)
    text = "open connections of clients"
    yield GaugeMetricFamily("hpc_dynamo_connections", text, value=stats.connections)


def _workers(loads: Iterable[WorkerLoad], workers: Iterable[WorkerReport]) -> Iterable[Metric]:
    several = any(w.model for w in workers)
    labels = ["rank", "role", "node", *(["model"] if several else [])]
    roles = {w.rank: _labels(w) for w in workers}
    up = GaugeMetricFamily("hpc_dynamo_worker_ready", "1 while it is sent requests", labels=labels)
    for worker in workers:
        up.add_metric(roles[worker.rank], float(worker.state == "ready"))
    yield up
    for name, text in {
        "active": "requests that the router has on it",
        "running": "requests that the engine runs",
        "waiting": "requests that wait in the engine",
        "kv_usage": "share of the KV cache in use",
        "cache_hit_rate": "share of prompt tokens found in the prefix cache",
    }.items():
        family = GaugeMetricFamily(f"hpc_dynamo_worker_{name}", text, labels=labels)
        for load in loads:
            if load.rank in roles:
                family.add_metric(roles[load.rank], getattr(load, name))
        yield family


def _labels(worker: WorkerReport) -> list[str]:
    model = [worker.model] if worker.model else []
    return [str(worker.rank), str(worker.role), worker.host, *model]


def _seconds(name: str, text: str, buckets: Buckets) -> Metric:
    return histogram(f"hpc_dynamo_{name}", text, BOUNDS_S, buckets.counts, buckets.total_s)
