"""Engines' /metrics in one vocabulary, their growth over a run, and quantiles of it.

Format: Prometheus text exposition 0.0.4. Quantiles are interpolated inside a bucket, as
PromQL's histogram_quantile does.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from hpc_dynamo.engines.contract import MetricNames
from hpc_dynamo.messages import Quantiles


@dataclass(frozen=True)
class Histogram:
    """Cumulative counts by upper bound (seconds), as Prometheus gives them."""

    buckets: dict[float, float] = field(default_factory=dict)

    def __add__(self, other: "Histogram") -> "Histogram":
        bounds = self.buckets.keys() | other.buckets.keys()
        return Histogram({b: self.buckets.get(b, 0) + other.buckets.get(b, 0) for b in bounds})

    def __sub__(self, earlier: "Histogram") -> "Histogram":
        return Histogram({b: n - earlier.buckets.get(b, 0) for b, n in self.buckets.items()})

    @property
    def count(self) -> int:
        return int(self.buckets.get(math.inf, 0))

    def quantile(self, q: float) -> float:
        """Seconds below which a share `q` of the observations lie; 0 where there is none."""
        if not self.count:
            return 0.0
        below, lower, wanted = 0.0, 0.0, q * self.count
        for bound, total in sorted(self.buckets.items()):
            if total >= wanted and total > below:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (total - below)
            below, lower = total, bound
        return lower

    def quantiles(self) -> Quantiles:
        return Quantiles(p50=self.quantile(0.5), p99=self.quantile(0.99), count=self.count)


@dataclass(frozen=True)
class Metrics:
    """One reading of one worker. Gauges are of the moment, the rest counts since its start."""

    running: float = 0
    waiting: float = 0
    kv_usage: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    prompt_tokens: float = 0
    generation_tokens: float = 0
    kv_bytes: float = 0
    kv_tokens: int = 0  # that its KV cache holds; 0: it does not say
    ttft: Histogram = Histogram()
    itl: Histogram = Histogram()


def parse(text: str, names: MetricNames) -> Metrics:
    """Read /metrics; what an engine does not export stays at zero."""
    numbers: dict[str, float] = {}
    histograms: dict[str, dict[float, float]] = {}
    kv_tokens = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets = histograms.setdefault(family.name, {})
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0) + sample.value
            elif sample.name == names.cache:
                kv_tokens = max(kv_tokens, _tokens(sample.labels))
            else:
                numbers[sample.name] = numbers.get(sample.name, 0) + sample.value

    def first(*candidates: str) -> float:
        return next((numbers[c] for c in candidates if c in numbers), 0.0)

    return Metrics(
        running=first(names.running),
        waiting=first(names.waiting),
        kv_usage=first(names.kv_usage),
        prefix_queries=first(f"{names.prefix_queries}_total"),
        prefix_hits=first(f"{names.prefix_hits}_total"),
        prompt_tokens=first(f"{names.prompt_tokens}_total"),
        generation_tokens=first(f"{names.generation_tokens}_total"),
        kv_bytes=first(f"{names.kv_bytes}_sum", f"{names.kv_bytes}_total"),
        kv_tokens=kv_tokens,
        ttft=Histogram(histograms.get(names.ttft, {})),
        itl=Histogram(histograms.get(names.itl, {})),
    )


def _tokens(cache: Mapping[str, str]) -> int:
    """0 where an engine does not say how many blocks it has."""
    counts = [cache.get(name, "") for name in ("num_gpu_blocks", "block_size")]
    return int(counts[0]) * int(counts[1]) if all(map(str.isdigit, counts)) else 0


def total(histograms: Iterable[Histogram]) -> Histogram:
    return sum(histograms, Histogram())
