"""The load of the next interval, guessed from those before."""

from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Protocol

from hpc_dynamo.config import Forecast
from hpc_dynamo.planner.signals import Demand, Signals


class Predictor(Protocol):
    """Of one series, one value an interval."""

    def observe(self, value: float) -> None:
        """The interval that ended."""

    def predict(self) -> float:
        """The next one; 0 before any was observed, and never negative."""


class Last:
    """What was, will be."""

    def __init__(self) -> None:
        self._value = 0.0

    def observe(self, value: float) -> None:
        self._value = value

    def predict(self) -> float:
        return self._value


class Mean:
    """The moving average of `window` intervals."""

    def __init__(self, window: int = 4) -> None:
        self._values = deque[float](maxlen=window)

    def observe(self, value: float) -> None:
        self._values.append(value)

    def predict(self) -> float:
        return fmean(self._values) if self._values else 0.0


PREDICTORS: dict[Forecast, Callable[[], Predictor]] = {
    Forecast.last: Last,
    Forecast.mean: Mean,
}


class Outlook:
    """What is expected of rate and lengths, each by a predictor of its own."""

    def __init__(self, kind: Forecast) -> None:
        make = PREDICTORS[kind]
        self._rate, self._prompt, self._answer = make(), make(), make()

    def observe(self, seen: Signals) -> Demand:
        """Take in an interval, return what the next is expected to be."""
        self._rate.observe(seen.rate_hz)
        if seen.prompt_tokens:  # an interval without requests says nothing of their length
            self._prompt.observe(seen.prompt_tokens)
        if seen.answer_tokens:
            self._answer.observe(seen.answer_tokens)
        return Demand(
            rate_hz=self._rate.predict(),
            prompt_tokens=self._prompt.predict(),
            answer_tokens=self._answer.predict(),
        )
