"""Queueing model: the wait for a free worker, and the workers that limit it."""

from collections.abc import Callable
from math import inf, sqrt

# Maximum share of a worker's time: predictions err, and a backlog needs time to clear.
MAX_UTILIZATION = 0.85
HALVINGS = 40


def wait_s(rate_hz: float, service_s: float, workers: float) -> float:
    """Return the mean wait before `workers` servers with one queue; inf if it grows unbounded.

    Sakasegawa's approximation of G/G/m (1977; Hopp and Spearman, Factory Physics, 8.6), for
    arrivals and service times as irregular as exponential ones:
    rho ** (sqrt(2 (m + 1)) - 1) / (m (1 - rho)) * service_s, with rho = rate_hz * service_s / m.
    """
    busy = rate_hz * service_s / workers if workers else inf
    if busy >= 1:
        return inf
    return float(busy ** (sqrt(2 * (workers + 1)) - 1) / (workers * (1 - busy)) * service_s)


def workers_for(rate_hz: float, service_s: float, max_wait_s: float) -> float:
    """Return the fewest workers, as a fraction, with a wait of at most `max_wait_s` above 0."""
    load = rate_hz * service_s
    if not load:
        return 0.0

    def fits(busy: float) -> bool:
        return wait_s(rate_hz, service_s, load / busy) <= max_wait_s

    return load / largest_fitting(fits, 1e-6, MAX_UTILIZATION)


def largest_fitting(fits: Callable[[float], bool], low: float, high: float) -> float:
    """Return the largest number up to `high` that fits, or `low` if none does.

    All numbers below a fitting one must fit as well.
    """
    if fits(high):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
