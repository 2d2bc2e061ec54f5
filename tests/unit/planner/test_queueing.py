"""The wait before several servers, compared with exact results."""

from math import factorial, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.planner.queueing import MAX_UTILIZATION, wait_s, workers_for


def erlang_c_wait_s(rate_hz: float, service_s: float, workers: int) -> float:
    """Return the exact wait of M/M/m (Erlang 1917)."""
    offered = rate_hz * service_s
    busy = offered / workers
    queued = offered**workers / factorial(workers) / (1 - busy)
    waits = queued / (sum(offered**k / factorial(k) for k in range(workers)) + queued)
    return waits * service_s / (workers * (1 - busy))


@pytest.mark.parametrize("workers", [1, 2, 5, 16])
@pytest.mark.parametrize("busy", [0.6, 0.8, 0.95])
def test_wait_is_close_to_erlang_c(workers: int, busy: float) -> None:
    exact = erlang_c_wait_s(busy * workers, 1.0, workers)
    assert wait_s(busy * workers, 1.0, workers) == pytest.approx(exact, rel=0.25, abs=0.02)


def test_overloaded_queue_waits_infinitely() -> None:
    assert wait_s(2.0, 1.0, 2) == wait_s(1.0, 1.0, 0) == inf


@given(st.floats(0.01, 50), st.floats(0.01, 5), st.floats(0.05, 5))
def test_workers_for_is_the_smallest_sufficient_number(
    rate: float, service: float, most: float
) -> None:
    workers = workers_for(rate, service, most)
    assert wait_s(rate, service, workers) <= most * (1 + 1e-6)
    fewer = 0.95 * workers
    assert wait_s(rate, service, fewer) > most or rate * service / fewer > MAX_UTILIZATION
