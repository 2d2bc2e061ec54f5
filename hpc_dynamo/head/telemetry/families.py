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


def labelled(of: Mapping[str, Iterable[Metric]]) -> Iterable[Metric]:
    """The same metrics of several models, one family each; all but those of the empty name get the
    model as a label."""
    families = dict[str, Metric]()
    for model, metrics in of.items():
        for metric in metrics:
            samples = metric.samples
            if model:
                samples = [s._replace(labels={**s.labels, "model": model}) for s in samples]
            if metric.name in families:
                families[metric.name].samples += samples
            else:
                metric.samples = samples
                families[metric.name] = metric
    return families.values()
