"""The figures of a batch, from the engines' own histograms and our own count."""

import asyncio
from collections.abc import Iterable

from hpc_dynamo.config import Role
from hpc_dynamo.engines.contract import MetricNames
from hpc_dynamo.engines.metrics import EngineMetrics, parse_metrics
from hpc_dynamo.histogram import Histogram, merge
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import BatchSummary, Progress
from hpc_dynamo.router import RoutedWorker

READ_S = 10.0

MetricsByRank = dict[int, EngineMetrics]  # by rank


async def read_metrics(
    client: HttpClient, members: Iterable[RoutedWorker], names: MetricNames
) -> MetricsByRank:
    """One reading of every ready worker; those that do not answer are left out."""

    async def one(member: RoutedWorker) -> EngineMetrics | None:
        try:
            got = client.send("GET", member.url, names.path)
            async with asyncio.timeout(READ_S), got as answer:
                return parse_metrics((await answer.read()).decode(), names)
        except (OSError, ValueError):  # not there, too slow, or no metrics at all
            return None

    present = list(members)
    readings = await asyncio.gather(*map(one, present))
    return {m.rank: r for m, r in zip(present, readings, strict=True) if r is not None}


def summarize(
    members: Iterable[RoutedWorker], before: MetricsByRank, after: MetricsByRank, progress: Progress
) -> BatchSummary:
    """What grew between two readings. A worker that started again counts from its new start."""
    present, seconds = list(members), max(progress.elapsed_s, 1e-9)

    def growth(rank: int, pick: str) -> Histogram:
        new: Histogram = getattr(after.get(rank, EngineMetrics()), pick)
        old: Histogram = getattr(before.get(rank, EngineMetrics()), pick)
        return new - old if new.count >= old.count else new

    def over(roles: tuple[Role, ...], pick: str) -> Histogram:
        return merge(growth(m.rank, pick) for m in present if m.role in roles)

    def moved(rank: int) -> float:
        new, old = (r.get(rank, EngineMetrics()).kv_bytes for r in (after, before))
        return new - old if new >= old else new

    answering = (Role.decode, Role.aggregated)
    decoders = [m for m in present if m.role in answering]
    return BatchSummary(
        progress=progress,
        seconds=progress.elapsed_s,
        ttft_prefill=over((Role.prefill,), "ttft").quantiles(),
        ttft_decode=over(answering, "ttft").quantiles(),
        itl=over(answering, "itl").quantiles(),
        kv_bytes=int(sum(moved(m.rank) for m in present)),
        decode_busy=sum(m.busy_s for m in decoders) / seconds / max(len(decoders), 1),
    )
