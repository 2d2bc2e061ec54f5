"""Shapes of Prometheus' metrics that its client library makes awkward."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric


def histogram(
    name: str, text: str, bounds_s: Sequence[float], counts: Sequence[int], total_s: float
) -> Metric:
    """From counts by bucket; one more than bounds, the last beyond all of them."""
    rows, total = list[tuple[str, float]](), 0
    for bound, count in zip((*map(str, bounds_s), "+Inf"), counts, strict=True):
        total += count
        rows.append((bound, total))
    return HistogramMetricFamily(name, text, buckets=rows, sum_value=total_s)


def counters(prefix: str, table: Mapping[str, tuple[float, str]]) -> Iterable[Metric]:
    """Without labels: name, value and text of each."""
    for name, (value, text) in table.items():
        yield CounterMetricFamily(f"{prefix}_{name}", text, value=value)
