"""How long work waits for a free worker, and how many workers keep that short."""

from collections.abc import Callable
from math import inf, sqrt

MAX_UTILIZATION = (
    0.85  # of a worker's time, at most: a forecast errs, and nothing is left to catch up with
)
HALVINGS = 40


def wait_s(rate_hz: float, service_s: float, workers: float) -> float:
    """Mean time in line before `workers` servers that share one line; inf where it only grows.

    Sakasegawa's approximation of G/G/m (1977; Hopp and Spearman, Factory Physics, 8.6), for
    arrivals and service times as irregular as exponential ones:
    rho ** (sqrt(2 (m + 1)) - 1) / (m (1 - rho)) * service_s, with rho = rate_hz * service_s / m.
    """
    busy = rate_hz * service_s / workers if workers else inf
    if busy >= 1:
        return inf
    return float(busy ** (sqrt(2 * (workers + 1)) - 1) / (workers * (1 - busy)) * service_s)


def workers_for(rate_hz: float, service_s: float, most_wait_s: float) -> float:
    """The fewest workers, with fractions, before which work waits no longer than that, which is
    above 0."""
    load = rate_hz * service_s
    if not load:
        return 0.0
    return load / largest_fitting(
        lambda busy: wait_s(rate_hz, service_s, load / busy) <= most_wait_s, 1e-6, MAX_UTILIZATION
    )


def largest_fitting(fits: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number up to `high` that fits, where all that are less fit; `low` if none."""
    if fits(high):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
