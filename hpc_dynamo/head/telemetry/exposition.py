"""The head's metrics page, in Prometheus' text format 0.0.4."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.head.telemetry import families
from hpc_dynamo.head.telemetry.planner import planner_metrics
from hpc_dynamo.head.telemetry.requests import connection_metrics, request_metrics, traffic_metrics
from hpc_dynamo.head.telemetry.router import router_metrics
from hpc_dynamo.head.telemetry.workers import worker_metrics
from hpc_dynamo.messages import PlannerStatus, Traffic, WorkerLoad, WorkerReport
from hpc_dynamo.router import RequestRouter


@dataclass(frozen=True)
class ModelMetrics:
    """Sources of the metrics of one model."""

    stats: FrontendStats
    traffic: Traffic
    router: RequestRouter

    def collect(self) -> Iterable[Metric]:
        yield from request_metrics(self.stats)
        yield from traffic_metrics(self.traffic)
        yield from router_metrics(self.router)


def exposition(
    models: Mapping[str, ModelMetrics],
    rest: FrontendStats,
    loads: Iterable[WorkerLoad],
    workers: Iterable[WorkerReport],
    planner: PlannerStatus | None,
    tasks: Mapping[str, int],
    defects: Mapping[str, int],
) -> str:
    """Return the text of all families that have a value; see `families` for their names.

    `models` is by name, which becomes a label. A job of one model has it under the empty name,
    without a label. `rest` counts what belongs to no model. `tasks` counts asyncio's tasks by
    process, `defects` those of hpc_dynamo.defects. Engines export their own metrics.
    """

    class HeadCollector(Collector):
        def collect(self) -> Iterable[Metric]:
            by_model = {name: model.collect() for name, model in models.items()}
            without = {} if "" in models else {"": request_metrics(rest)}
            yield from _merged(without | by_model)
            yield from connection_metrics(rest)
            yield from worker_metrics(loads, workers)
            yield from planner_metrics(planner)
            yield families.TASKS.values(_by_process(tasks))
            yield families.DEFECTS.values(_by_process(defects))

    registry = CollectorRegistry()
    registry.register(HeadCollector())
    return generate_latest(registry).decode()


def _merged(by_model: Mapping[str, Iterable[Metric]]) -> Iterable[Metric]:
    """Merge the metrics of all models into one family each, with the model as a label."""
    merged = dict[str, Metric]()
    for model, metrics in by_model.items():
        label = {"model": model} if model else {}
        for metric in metrics:
            samples = [s._replace(labels=s.labels | label) for s in metric.samples]
            family = merged.setdefault(metric.name, metric)
            family.samples = samples if family is metric else family.samples + samples
    return merged.values()


def _by_process(counts: Mapping[str, int]) -> Iterable[tuple[tuple[str], int]]:
    return (((process,), count) for process, count in counts.items())
