"""Predictors that keep a few numbers of the past: no library, a few microseconds each."""

from collections import deque
from itertools import product
from statistics import fmean

from hpc_dynamo.planner.forecast.predictor import Predictor

LEVEL = (0.1, 0.2, 0.35, 0.5, 0.8)  # of a level's error, what is learned
TREND = (0.0, 0.1, 0.3, 0.6)  # of what the level learned, what its trend does
DAMPING = 0.95  # of a trend, what is left an interval later: no trend of a load lasts
MEMORY = 0.95  # of an error's weight, what is left an interval later


class LastValue:
    """What was, will be."""

    def __init__(self) -> None:
        self._value = 0.0

    def observe(self, value: float) -> None:
        self._value = value

    def predict(self) -> float:
        return self._value


class MovingAverage:
    """The moving average of `window` intervals."""

    def __init__(self, window: int = 8) -> None:
        self._values = deque[float](maxlen=window)

    def observe(self, value: float) -> None:
        self._values.append(value)

    def predict(self) -> float:
        return fmean(self._values) if self._values else 0.0


class Holt:
    """Exponential smoothing of level and damped trend (Gardner and McKenzie 1985).

    `level` and `trend` are the shares, 0 to 1, of an error that each of them takes in.
    Without Winters' seasons: at half a minute, a season of a day has thousands of values.
    """

    def __init__(self, level: float, trend: float) -> None:
        self._alpha, self._beta = level, level * trend
        self._level: float | None = None
        self._trend = 0.0

    def observe(self, value: float) -> None:
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
    """Of some predictors, always that which erred least lately (mean square)."""

    def __init__(self, predictors: list[Predictor]) -> None:
        self._predictors = predictors
        self._errors = [0.0] * len(predictors)
        self._best = predictors[0]
        self._begun = False

    def observe(self, value: float) -> None:
        for i, each in enumerate(self._predictors):
            if self._begun:
                self._errors[i] = MEMORY * self._errors[i] + (value - each.predict()) ** 2
            each.observe(value)
        self._begun = True
        self._best = self._predictors[self._errors.index(min(self._errors))]

    def predict(self) -> float:
        return self._best.predict()


def holt() -> Predictor:
    return BestOf([Holt(level, trend) for level, trend in product(LEVEL, TREND)])
