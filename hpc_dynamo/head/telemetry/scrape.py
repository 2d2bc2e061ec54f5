"""What the engines say of themselves, read now and then for the status and the metrics."""

import asyncio
from collections.abc import Iterable

from hpc_dynamo.batch import report
from hpc_dynamo.engines.adapter import MetricNames
from hpc_dynamo.engines.metrics import EngineMetrics
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import WorkerLoad
from hpc_dynamo.router import RoutedWorker, Router

SCRAPE_S = 3.0  # reading a worker's metrics costs it, and us, some milliseconds


class MetricsScraper:
    """Keeps the last reading of every ready worker."""

    def __init__(self, router: Router, client: HttpClient, names: MetricNames) -> None:
        self._router, self._client, self._names = router, client, names
        self._readings: report.MetricsByRank = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            members = self._router.workers
            self._readings = await report.read_metrics(self._client, members, self._names)
            await asyncio.sleep(SCRAPE_S)

    def loads(self) -> tuple[WorkerLoad, ...]:
        return tuple(self._load(member) for member in _sorted(self._router.workers))

    def _load(self, member: RoutedWorker) -> WorkerLoad:
        said = self._readings.get(member.rank, EngineMetrics())
        return WorkerLoad(
            rank=member.rank,
            active=member.active,
            served=member.served,
            running=int(said.running),
            waiting=int(said.waiting),
            kv_usage=said.kv_usage,
            cache_hit_rate=said.prefix_hits / max(said.prefix_queries, 1.0),
            prompt_tokens=int(said.prompt_tokens),
            prefix_queries=int(said.prefix_queries),
            prefix_hits=int(said.prefix_hits),
            ttft=said.ttft.quantiles(),
            itl=said.itl.quantiles(),
        )


def _sorted(members: Iterable[RoutedWorker]) -> list[RoutedWorker]:
    return sorted(members, key=lambda m: m.rank)
