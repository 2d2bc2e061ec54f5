"""Predicts request rate and mean lengths, each by its own predictor."""

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
    """Predicts the load of the next interval."""

    def __init__(self, kind: Forecast) -> None:
        make = PREDICTORS[kind]
        self._rate, self._prompt, self._answer = make(), make(), make()

    def observe(self, signals: Signals) -> ExpectedLoad:
        """Add an interval; return the expected load of the next one."""
        self._rate.observe(signals.rate_hz)
        # Without requests, the lengths of an interval are unknown.
        if signals.prompt_tokens:
            self._prompt.observe(signals.prompt_tokens)
        if signals.answer_tokens:
            self._answer.observe(signals.answer_tokens)
        return ExpectedLoad(
            rate_hz=self._rate.predict(),
            prompt_tokens=self._prompt.predict(),
            answer_tokens=self._answer.predict(),
        )
