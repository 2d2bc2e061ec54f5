"""Summary of a batch, from the engines' histograms and the runner's counts."""

import asyncio
from collections.abc import Iterable

from hpc_dynamo.config import Role
from hpc_dynamo.engines.adapter import MetricNames
from hpc_dynamo.engines.metrics import EngineMetrics, parse_metrics
from hpc_dynamo.histogram import Histogram, merge
from hpc_dynamo.http import MAX_REPORT_BYTES, HttpClient
from hpc_dynamo.messages import BatchSummary, Progress
from hpc_dynamo.router import RoutedWorker

READ_TIMEOUT_S = 10.0

MetricsByRank = dict[int, EngineMetrics]


async def read_metrics(
    client: HttpClient, workers: Iterable[RoutedWorker], names: MetricNames
) -> MetricsByRank:
    """Return the metrics of the workers; those that do not answer are omitted."""

    async def read_worker(worker: RoutedWorker) -> EngineMetrics | None:
        try:
            sent = client.send("GET", worker.url, names.path)
            async with asyncio.timeout(READ_TIMEOUT_S), sent as response:
                return parse_metrics((await response.read(MAX_REPORT_BYTES)).decode(), names)
        except (OSError, ValueError):  # not reachable, too slow, or not metrics
            return None

    workers = list(workers)
    metrics = await asyncio.gather(*map(read_worker, workers))
    return {w.rank: m for w, m in zip(workers, metrics, strict=True) if m is not None}


def summarize(
    workers: Iterable[RoutedWorker], before: MetricsByRank, after: MetricsByRank, progress: Progress
) -> BatchSummary:
    """Return the summary of what happened between two readings of the metrics.

    The counts of a worker that was restarted in between begin at its restart.
    """
    workers, seconds = list(workers), max(progress.elapsed_s, 1e-9)

    def growth(rank: int, name: str) -> Histogram:
        new: Histogram = getattr(after.get(rank, EngineMetrics()), name)
        old: Histogram = getattr(before.get(rank, EngineMetrics()), name)
        return new - old if new.count >= old.count else new

    def total(roles: tuple[Role, ...], name: str) -> Histogram:
        return merge(growth(w.rank, name) for w in workers if w.role in roles)

    def increase(name: str) -> int:
        """Return the increase of a counter of all workers."""
        counts = [
            [getattr(r.get(w.rank, EngineMetrics()), name) for r in (after, before)]
            for w in workers
        ]
        return int(sum(new - old if new >= old else new for new, old in counts))

    decoding = (Role.decode, Role.aggregated)
    decoders = [w for w in workers if w.role in decoding]
    return BatchSummary(
        progress=progress,
        seconds=progress.elapsed_s,
        ttft_prefill=total((Role.prefill,), "ttft").quantiles(),
        ttft_decode=total(decoding, "ttft").quantiles(),
        itl=total(decoding, "itl").quantiles(),
        kv_bytes=increase("kv_bytes"),
        kv_transfer_failures=increase("kv_failures"),
        decode_busy=sum(w.busy_s for w in decoders) / seconds / max(len(decoders), 1),
    )
