"""Readings of the engines' own metrics, for status, planner and metrics."""

import asyncio
from collections.abc import Iterable

from hpc_dynamo.batch import report
from hpc_dynamo.engines.adapter import MetricNames
from hpc_dynamo.engines.metrics import EngineMetrics
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.router import RequestRouter, RoutedWorker

INTERVAL_S = 3.0  # a reading costs the engine and the head some milliseconds


class MetricsScraper:
    """Keeps the last reading of every ready worker."""

    def __init__(self, router: RequestRouter, client: HttpClient, names: MetricNames) -> None:
        self._router, self._client, self._names = router, client, names
        self._readings: report.MetricsByRank = {}

    async def run(self) -> None:
        """Read the metrics of all workers every few seconds until cancelled."""
        while True:
            workers = self._router.workers
            self._readings = await report.read_metrics(self._client, workers, self._names)
            await asyncio.sleep(INTERVAL_S)

    def loads(self) -> tuple[WorkerLoad, ...]:
        """Return the load of every ready worker, by rank."""
        return tuple(self._load(worker) for worker in _by_rank(self._router.workers))

    def _load(self, worker: RoutedWorker) -> WorkerLoad:
        metrics = self._readings.get(worker.rank, EngineMetrics())
        return WorkerLoad(
            rank=worker.rank,
            active=worker.active,
            served=worker.served,
            running=int(metrics.running),
            waiting=int(metrics.waiting),
            kv_usage=metrics.kv_usage,
            cache_hit_rate=metrics.prefix_hits / max(metrics.prefix_queries, 1.0),
            prompt_tokens=int(metrics.prompt_tokens),
            prefix_queries=int(metrics.prefix_queries),
            prefix_hits=int(metrics.prefix_hits),
            kv_transfer_failures=int(metrics.kv_failures),
            ttft=metrics.ttft.quantiles(),
            itl=metrics.itl.quantiles(),
        )


def _by_rank(workers: Iterable[RoutedWorker]) -> list[RoutedWorker]:
    return sorted(workers, key=lambda worker: worker.rank)
