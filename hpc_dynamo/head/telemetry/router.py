"""Metrics of the router: what it decided, how fast, and what it knows of KV caches."""

from collections.abc import Iterable

from prometheus_client.core import Metric

from hpc_dynamo.head.telemetry import families
from hpc_dynamo.router import DecisionStats, KvState, RequestRouter


def router_metrics(router: RequestRouter) -> Iterable[Metric]:
    """Yield the decisions of a router and the state of its index of cached blocks."""
    yield from _decisions(router.decisions)
    yield from _kv_state(router.kv_state)
    yield families.TRANSFER_COST.value(router.transfer_cost_tokens)


def _decisions(decisions: DecisionStats) -> Iterable[Metric]:
    by_worker = sorted(decisions.by_worker.items())
    yield families.DECISIONS.values(
        ((str(rank), role, policy), count) for (rank, role, policy), count in by_worker
    )
    reasons = sorted(decisions.by_reason.items())
    yield families.PREFILLS.values(((reason,), count) for reason, count in reasons)
    blocks, cached = decisions.prompt_blocks, decisions.overlap_blocks
    yield families.PROMPT_BLOCKS.value(blocks)
    yield families.CACHED_BLOCKS.value(cached)
    yield families.HIT_RATIO.value(cached / blocks if blocks else 0.0)
    yield families.DECISION_TIME.histogram(decisions.seconds)


def _kv_state(state: KvState) -> Iterable[Metric]:
    predicted = len(state.pending) + len(state.approximate)
    sources = [(("events",), len(state.confirmed)), (("decisions",), predicted)]
    yield families.INDEX_BLOCKS.values(sources)
    yield families.EVENT_LAG.value(state.lag_s)
    ignored = ("orphans", "unfit", "full")
    yield families.IGNORED_BLOCKS.values(
        ((reason,), getattr(state.confirmed, reason)) for reason in ignored
    )
    yield families.EVENT_BATCHES.value(state.batches)
    yield families.EVENT_GAPS.value(state.gaps)
    yield families.INDEX_RESETS.value(state.resyncs)
    yield families.BAD_EVENTS.value(state.unreadable_batches)
