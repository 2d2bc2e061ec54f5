"""Histogram with fixed buckets, as in Prometheus: counted by a process or read from an engine."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import msgspec


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Median and 99th percentile of `count` durations, in seconds."""

    p50: float = 0.0
    p99: float = 0.0
    count: int = 0


class Histogram(msgspec.Struct):
    """Counts of observed values by bucket, and their sum. The default holds no bucket.

    `counts[i]` counts values up to `bounds[i]` and above the bound before it. The last count is
    of values above all bounds.
    """

    bounds: tuple[float, ...] = ()  # ascending upper bounds
    counts: list[float] = []
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @classmethod
    def from_cumulative(cls, buckets: Mapping[float, float]) -> "Histogram":
        """Return the histogram of Prometheus' `le` buckets, whose counts include lower buckets."""
        totals = [buckets[bound] for bound in sorted(buckets)]
        counts = [total - lower for lower, total in zip([0.0, *totals], totals, strict=False)]
        return cls(tuple(sorted(buckets))[:-1], counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def __add__(self, other: "Histogram") -> "Histogram":
        """Return the histogram of both. Raises ValueError if both have buckets that differ."""
        if not (self.bounds and other.bounds):
            return self if self.bounds else other
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.bounds, counts, self.sum + other.sum)

    def __sub__(self, earlier: "Histogram") -> "Histogram":
        """Return the histogram of what was observed since `earlier`, an older copy of this one."""
        if not self.bounds:
            return self
        return self + Histogram(earlier.bounds, [-n for n in earlier.counts], -earlier.sum)

    @property
    def count(self) -> int:
        return int(sum(self.counts))

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """Yield the `le` label and the count of each of Prometheus' buckets, lowest first."""
        return zip((*map(str, self.bounds), "+Inf"), accumulate(self.counts), strict=True)

    def quantile(self, share: float) -> float:
        """Return the value that `share` of all values do not exceed; 0 if there is no value.

        It is interpolated inside a bucket, like PromQL's histogram_quantile. Values above all
        bounds are taken for the highest bound.
        """
        wanted, below, lower = share * self.count, 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return lower + (bound - lower) * (wanted - below) / count
            below, lower = below + count, bound
        return lower if self.count else 0.0

    def quantiles(self) -> Quantiles:
        return Quantiles(p50=self.quantile(0.5), p99=self.quantile(0.99), count=self.count)


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """Return the histogram of all observations."""
    return sum(histograms, Histogram())
