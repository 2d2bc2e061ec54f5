"""Limit of restarts within a time window."""

import pytest

from hpc_dynamo.backoff import RestartLimit


def test_failures_in_a_row_reach_the_limit_with_growing_delays() -> None:
    limit, delays = RestartLimit(5, 600.0, longest_delay_s=3.0), []
    for left in (5, 4, 3, 2, 1):
        limit.succeeded()
        assert limit.failed(now=100.0) == left
        delays.append(limit.delay_s)
    assert delays == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert limit.failed(now=100.0) == 0


def test_failures_before_the_window_do_not_count() -> None:
    limit = RestartLimit(2, 600.0)
    for failure in range(100):
        limit.succeeded()
        assert limit.failed(now=failure * 300.5) >= 1


@pytest.mark.parametrize("start_s", [1.0, 700.0, 5000.0])
def test_starts_that_never_succeed_reach_the_limit(start_s: float) -> None:
    limit = RestartLimit(2, 600.0)
    limit.succeeded()
    assert [limit.failed(now=n * start_s) for n in range(4)] == [2, 1, 0, 0]


def test_no_restart() -> None:
    assert RestartLimit(0, 600.0).failed(now=0.0) == 0
