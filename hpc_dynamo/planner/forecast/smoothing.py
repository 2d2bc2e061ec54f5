"""Predictors with constant memory, of a few microseconds per value."""

from collections import deque
from itertools import product
from statistics import fmean

from hpc_dynamo.planner.forecast.predictor import Predictor

LEVEL = (0.1, 0.2, 0.35, 0.5, 0.8)  # candidate smoothing constants of the level
TREND = (0.0, 0.1, 0.3, 0.6)  # candidate smoothing constants of the trend
DAMPING = 0.95  # factor of the trend per interval: trends of a load do not last
MEMORY = 0.95  # weight of past errors per interval


class LastValue:
    """Predicts the last value."""

    def __init__(self) -> None:
        self._value = 0.0

    def observe(self, value: float) -> None:
        self._value = value

    def predict(self) -> float:
        return self._value


class MovingAverage:
    """Predicts the mean of the last `window` values."""

    def __init__(self, window: int = 8) -> None:
        self._values = deque[float](maxlen=window)

    def observe(self, value: float) -> None:
        self._values.append(value)

    def predict(self) -> float:
        return fmean(self._values) if self._values else 0.0


class Holt:
    """Exponential smoothing of a level and a damped trend (Gardner and McKenzie 1985).

    `level` and `trend` are the shares of an error, 0 to 1, that each of them absorbs. There are no
    seasons (Winters): at intervals of half a minute, the season of a day has thousands of values.
    """

    def __init__(self, level: float, trend: float) -> None:
        self._alpha, self._beta = level, level * trend
        self._level: float | None = None
        self._trend = 0.0

    def observe(self, value: float) -> None:
        """Update level and trend."""
        if self._level is None:
            self._level = value
            return
        expected = self._level + DAMPING * self._trend
        error = value - expected
        self._level = expected + self._alpha * error
        self._trend = DAMPING * self._trend + self._beta * error

    def predict(self) -> float:
        return max(0.0, (self._level or 0.0) + DAMPING * self._trend)


class BestOf:
    """Predicts with the predictor that has the smallest recent mean square error."""

    def __init__(self, predictors: list[Predictor]) -> None:
        self._predictors = predictors
        self._errors = [0.0] * len(predictors)
        self._best = predictors[0]
        self._begun = False

    def observe(self, value: float) -> None:
        for i, predictor in enumerate(self._predictors):
            if self._begun:
                self._errors[i] = MEMORY * self._errors[i] + (value - predictor.predict()) ** 2
            predictor.observe(value)
        self._begun = True
        self._best = self._predictors[self._errors.index(min(self._errors))]

    def predict(self) -> float:
        return self._best.predict()


def holt() -> Predictor:
    """Return Holt smoothing with the best of 20 pairs of constants."""
    return BestOf([Holt(level, trend) for level, trend in product(LEVEL, TREND)])
