"""The job's own figures in Prometheus' text format 0.0.4."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from hpc_dynamo.frontend.stats import BOUNDS_S, Buckets, Stats
from hpc_dynamo.head import planning, routing
from hpc_dynamo.head.families import counters, histogram
from hpc_dynamo.messages import Planning, Traffic, WorkerLoad, WorkerReport
from hpc_dynamo.router import Router


def exposition(
    stats: Stats,
    traffic: Traffic,
    loads: Iterable[WorkerLoad],
    workers: Iterable[WorkerReport],
    router: Router,
    planned: Planning | None,
) -> str:
    """Everything under `hpc_dynamo_`; engines' own metrics stay with the engines."""

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from _frontend(stats, traffic)
            yield from _workers(loads, workers)
            yield from routing.metrics(router)
            yield from planning.metrics(planned)

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry).decode()


def _frontend(stats: Stats, traffic: Traffic) -> Iterable[Metric]:
    answers = CounterMetricFamily(
        "hpc_dynamo_requests", "answers by path and status", labels=["path", "status"]
    )
    for key, count in sorted(stats.answers.items()):
        answers.add_metric(key.split(" "), count)
    yield answers
    counted = {
        "cancelled": (stats.cancelled, "requests whose client went away"),
        "retried": (stats.retried, "tries on another worker"),
        "forwarded": (stats.forwarded, "requests passed on to the job that takes over"),
        "refused": (traffic.refused, "requests refused for overload"),
        "prompt_tokens": (stats.prompt_tokens, "prompt tokens counted before routing"),
    }
    yield from counters("hpc_dynamo", counted)
    gauges = {
        "active": (traffic.active, "requests on workers"),
        "queued": (traffic.queued, "requests that wait for a worker"),
        "connections": (stats.connections, "open connections of clients"),
    }
    for name, (value, text) in gauges.items():
        yield GaugeMetricFamily(f"hpc_dynamo_{name}", text, value=value)
    yield _seconds("ttft_seconds", "until the first bytes of an answer", stats.ttft)
    yield _seconds("itl_seconds", "between pieces of a stream", stats.itl)
    yield _seconds("request_seconds", "until the end of an answer", stats.seconds)


def _workers(loads: Iterable[WorkerLoad], workers: Iterable[WorkerReport]) -> Iterable[Metric]:
    labels = ["rank", "role", "node"]
    roles = {w.rank: (str(w.rank), str(w.role), w.host) for w in workers}
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
            family.add_metric(roles.get(load.rank, (str(load.rank), "", "")), getattr(load, name))
        yield family


def _seconds(name: str, text: str, buckets: Buckets) -> Metric:
    return histogram(f"hpc_dynamo_{name}", text, BOUNDS_S, buckets.counts, buckets.total_s)
