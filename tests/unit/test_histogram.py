"""Histograms: quantiles, sums and differences."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.histogram import Histogram, merge
from hpc_dynamo.messages import Quantiles

histogram = Histogram.from_cumulative

SEEN = histogram({0.1: 50, 0.2: 90, 0.4: 100, math.inf: 100})


@pytest.mark.parametrize(
    ("q", "expected"), [(0.25, 0.05), (0.5, 0.1), (0.7, 0.15), (0.9, 0.2), (0.95, 0.3), (1, 0.4)]
)
def test_quantile_is_interpolated_inside_a_bucket(q: float, expected: float) -> None:
    assert SEEN.quantile(q) == pytest.approx(expected)
    assert histogram({0.1: 1, math.inf: 10**6}).quantile(q) == 0.1, "beyond the last bound"


def test_empty_histogram_has_zero_quantiles() -> None:
    """JSON has neither NaN nor infinity."""
    assert Histogram().quantiles() == Quantiles()
    assert histogram({0.1: 0, math.inf: 0}).quantiles() == Quantiles()


def test_histograms_can_be_added_and_subtracted() -> None:
    more = histogram({0.1: 60, 0.2: 100, 0.4: 120, math.inf: 130})
    assert more - SEEN == histogram({0.1: 10, 0.2: 10, 0.4: 20, math.inf: 30})
    assert merge([SEEN, more - SEEN]) == more
    assert merge([]) == Histogram()
    assert SEEN + Histogram() == SEEN


BOUNDS = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, math.inf]


@given(st.lists(st.floats(0, 4.9), min_size=1), st.floats(0.01, 1))
def test_quantile_lies_in_the_bucket_of_the_true_quantile(seen: list[float], q: float) -> None:
    counted = histogram({b: sum(x <= b for x in seen) for b in BOUNDS})
    true = sorted(seen)[math.ceil(q * len(seen)) - 1]
    upper = next(b for b in BOUNDS if true <= b)
    lower = max((b for b in BOUNDS if b < upper), default=0.0)
    assert lower - 1e-9 <= counted.quantile(q) <= upper + 1e-9
