"""What is expected of the next interval: rate and lengths, each by a predictor of its own."""

from collections.abc import Callable

from hpc_dynamo.config import Forecast
from hpc_dynamo.planner.forecast.predictor import Predictor
from hpc_dynamo.planner.forecast.smoothing import LastValue, MovingAverage, holt
from hpc_dynamo.planner.signals import ExpectedLoad, Signals

PREDICTORS: dict[Forecast, Callable[[], Predictor]] = {
    Forecast.last: LastValue,
    Forecast.mean: MovingAverage,
    Forecast.holt: holt,
}


class LoadForecaster:
    """The demand of the next interval."""

    def __init__(self, kind: Forecast) -> None:
        make = PREDICTORS[kind]
        self._rate, self._prompt, self._answer = make(), make(), make()

    def observe(self, seen: Signals) -> ExpectedLoad:
        """Take in an interval, return what the next is expected to be."""
        self._rate.observe(seen.rate_hz)
        if seen.prompt_tokens:  # an interval without requests says nothing of their length
            self._prompt.observe(seen.prompt_tokens)
        if seen.answer_tokens:
            self._answer.observe(seen.answer_tokens)
        return ExpectedLoad(
            rate_hz=self._rate.predict(),
            prompt_tokens=self._prompt.predict(),
            answer_tokens=self._answer.predict(),
        )
