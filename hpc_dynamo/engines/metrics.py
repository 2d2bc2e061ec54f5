"""Engines' /metrics in one vocabulary. Format: Prometheus text exposition 0.0.4."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from prometheus_client.parser import text_string_to_metric_families

from hpc_dynamo.engines.adapter import MetricNames
from hpc_dynamo.histogram import Histogram


@dataclass(frozen=True)
class EngineMetrics:
    """Metrics of one worker at one time: gauges, and counts since its start."""

    running: float = 0
    waiting: float = 0
    kv_usage: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    prompt_tokens: float = 0
    generation_tokens: float = 0
    kv_bytes: float = 0
    kv_failures: float = 0  # failed KV transfers
    kv_tokens: int = 0  # capacity of its KV cache; 0 if not reported
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)


def parse_metrics(text: str, names: MetricNames) -> EngineMetrics:
    """Parse the text of /metrics. Metrics that the engine does not export are zero."""
    numbers: dict[str, float] = {}
    kv_usages: list[float] = []  # one for each data-parallel rank
    histograms: dict[str, dict[float, float]] = {}
    kv_tokens = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets = histograms.setdefault(family.name, {})
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0) + sample.value
            elif sample.name == names.cache_info:
                kv_tokens = max(kv_tokens, _tokens(sample.labels))
            elif sample.name == names.kv_usage:
                kv_usages.append(sample.value)
            else:
                numbers[sample.name] = numbers.get(sample.name, 0) + sample.value

    def first(*candidates: str) -> float:
        return next((numbers[c] for c in candidates if c in numbers), 0.0)

    return EngineMetrics(
        running=first(names.running),
        waiting=first(names.waiting),
        kv_usage=fmean(kv_usages) if kv_usages else 0.0,
        prefix_queries=first(f"{names.prefix_queries}_total"),
        prefix_hits=first(f"{names.prefix_hits}_total"),
        prompt_tokens=first(f"{names.prompt_tokens}_total"),
        generation_tokens=first(f"{names.generation_tokens}_total"),
        kv_bytes=first(f"{names.kv_bytes}_sum", f"{names.kv_bytes}_total") * names.kv_bytes_unit,
        kv_failures=first(f"{names.kv_failures}_total"),
        kv_tokens=kv_tokens or int(first(names.kv_tokens)),
        ttft=Histogram.from_cumulative(histograms.get(names.ttft, {})),
        itl=Histogram.from_cumulative(histograms.get(names.itl, {})),
    )


def _tokens(cache: Mapping[str, str]) -> int:
    """Return the capacity by the labels of the cache gauge; 0 if they are not numbers."""
    counts = [cache.get(name, "") for name in ("num_gpu_blocks", "block_size")]
    return int(counts[0]) * int(counts[1]) if all(map(str.isdigit, counts)) else 0
