"""Properties of all predictors, and of those with a trend."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dynamo.config import Forecast
from hpc_dynamo.planner.forecast import PREDICTORS, LoadForecaster, Predictor
from hpc_dynamo.planner.signals import ExpectedLoad, Signals

ALL = pytest.mark.parametrize("kind", list(Forecast))
WITH_TREND = (Forecast.holt,)


def fed(kind: Forecast, values: list[float]) -> Predictor:
    predictor = PREDICTORS[kind]()
    for value in values:
        predictor.observe(value)
    return predictor


@ALL
def test_predictor_without_values_predicts_zero(kind: Forecast) -> None:
    assert PREDICTORS[kind]().predict() == 0.0


@ALL
@pytest.mark.parametrize("value", [0.0, 1e-6, 3.7, 1e6])
@pytest.mark.parametrize("count", [1, 2, 9, 10, 150])
def test_constant_series_is_predicted_exactly(kind: Forecast, value: float, count: int) -> None:
    assert fed(kind, [value] * count).predict() == pytest.approx(value, rel=1e-6, abs=1e-12)


@ALL
@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(min_value=0.0, max_value=1e9), min_size=1, max_size=16))
def test_predictions_are_finite_and_never_negative(kind: Forecast, values: list[float]) -> None:
    predictor = PREDICTORS[kind]()
    for value in values:
        predictor.observe(value)
        assert 0.0 <= predictor.predict() < math.inf
        assert predictor.predict() == predictor.predict()


@ALL
def test_ended_load_is_not_predicted_negative(kind: Forecast) -> None:
    predictor = PREDICTORS[kind]()
    for value in [100.0 - 10 * i for i in range(11)] + [0.0] * 5:
        predictor.observe(value)
        assert predictor.predict() >= 0.0


@ALL
def test_predictions_scale_with_the_unit(kind: Forecast) -> None:
    draw = random.Random(3)
    values = [draw.uniform(1.0, 2.0) for _ in range(40)]
    thousands = fed(kind, [1000 * v for v in values]).predict()
    assert thousands == pytest.approx(1000 * fed(kind, values).predict(), rel=1e-3)


@pytest.mark.parametrize("kind", WITH_TREND)
def test_ramp_is_followed_by_predictors_with_a_trend(kind: Forecast) -> None:
    ramp = [10.0 + 2 * i for i in range(40)]
    assert fed(kind, ramp).predict() == pytest.approx(90.0, abs=1.0)
    assert fed(kind, ramp[::-1]).predict() == pytest.approx(8.0, abs=1.0)


@pytest.mark.parametrize("kind", [Forecast.mean, *WITH_TREND])
def test_noise_is_smoothed(kind: Forecast) -> None:
    """Half of the squared error of the last value is noise."""
    draw = random.Random(1)
    noisy = [draw.gauss(100.0, 10.0) for _ in range(80)]
    assert _square_error(kind, noisy) < 0.8 * _square_error(Forecast.last, noisy)


def _square_error(kind: Forecast, values: list[float]) -> float:
    predictor, total = PREDICTORS[kind](), 0.0
    for i, value in enumerate(values):
        total += (predictor.predict() - value) ** 2 if i >= 20 else 0.0
        predictor.observe(value)
    return total


def test_interval_without_requests_keeps_predicted_lengths() -> None:
    outlook = LoadForecaster(Forecast.last)
    busy = Signals(at=30.0, seconds=30.0, requests=60, prompt_tokens=900.0, answer_tokens=50.0)
    assert outlook.observe(busy) == ExpectedLoad(
        rate_hz=2.0, prompt_tokens=900.0, answer_tokens=50.0
    )
    idle = outlook.observe(Signals(at=60.0, seconds=30.0))
    assert idle == ExpectedLoad(rate_hz=0.0, prompt_tokens=900.0, answer_tokens=50.0)
