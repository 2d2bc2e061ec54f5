"""The router's own figures for Prometheus: what it decided, how fast, and what it knows."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hpc_dynamo.head.telemetry.families import counters, histogram
from hpc_dynamo.router import BOUNDS_S, Caches, Decisions, Router

PREFIX = "hpc_dynamo_router"


def metrics(router: Router) -> Iterable[Metric]:
    """Everything under `hpc_dynamo_router_`."""
    yield from _decisions(router.decisions)
    yield from _caches(router.caches)
    cost = "prompt tokens computed in the time of a hand-over"
    yield GaugeMetricFamily(f"{PREFIX}_handover_tokens", cost, value=router.handover_tokens)


def _decisions(decisions: Decisions) -> Iterable[Metric]:
    labels = ["rank", "role", "policy"]
    by = CounterMetricFamily(f"{PREFIX}_decisions", "requests given to a worker", labels=labels)
    for (rank, role, policy), count in sorted(decisions.by.items()):
        by.add_metric([str(rank), role, policy], count)
    yield by
    text = "how prompts are computed: split, whole, or by the decode worker (short, swamped)"
    why = CounterMetricFamily(f"{PREFIX}_prefills", text, labels=["why"])
    for reason, count in sorted(decisions.why.items()):
        why.add_metric([reason], count)
    yield why
    blocks, overlap = decisions.prompt_blocks, decisions.overlap_blocks
    yield CounterMetricFamily(f"{PREFIX}_prompt_blocks", "blocks of prompts", value=blocks)
    text = "of them, those that were cached on the chosen worker"
    yield CounterMetricFamily(f"{PREFIX}_overlap_blocks", text, value=overlap)
    share = overlap / blocks if blocks else 0.0
    yield GaugeMetricFamily(f"{PREFIX}_hit_rate", "share of the blocks, all in all", value=share)
    name, text = f"{PREFIX}_decision_seconds", "to choose the workers of a request"
    yield histogram(name, text, BOUNDS_S, decisions.counts, decisions.total_s)


def _caches(caches: Caches) -> Iterable[Metric]:
    index = GaugeMetricFamily(f"{PREFIX}_index_blocks", "cached blocks known", labels=["source"])
    index.add_metric(["events"], len(caches.told))
    index.add_metric(["decisions"], len(caches.soon) + len(caches.guessed))
    yield index
    text = "from an engine's event to its being known here, the last one"
    yield GaugeMetricFamily(f"{PREFIX}_event_lag_seconds", text, value=caches.lag_s)
    text = "blocks in events that were left out, and why"
    left = CounterMetricFamily(f"{PREFIX}_left_out_blocks", text, labels=["why"])
    for why in ("orphans", "unfit", "full"):
        left.add_metric([why], getattr(caches.told, why))
    yield left
    counted = {
        "event_batches": (caches.batches, "batches of KV events taken in"),
        "event_gaps": (caches.gaps, "batches found missing and asked for again"),
        "resyncs": (caches.resyncs, "workers forgotten because events were lost for good"),
        "unreadable_events": (caches.unreadable, "batches that could not be read"),
    }
    yield from counters(PREFIX, counted)
