"""ARIMA by statsmodels, which is an extra: nothing else of a run needs it."""

from collections import deque
from typing import Any
from warnings import catch_warnings, simplefilter

from hpc_dynamo.errors import MissingDependency

ORDER = (1, 1, 1)  # of changes: one of those before, and one error
HISTORY = 60  # intervals that are fitted to: half an hour of half minutes
STEPS = 20  # of the search for the likeliest, at most
LEAST = 10  # fewer say too little: as the last


class Arima:
    """Fitted anew for every value by likelihood: some 30 to 100 ms, bounded by HISTORY and STEPS.

    Raises MissingDependency without statsmodels.
    """

    def __init__(self) -> None:
        self._model = _model()
        self._values = deque[float](maxlen=HISTORY)
        self._next: float | None = 0.0

    def observe(self, value: float) -> None:
        self._values.append(value)
        self._next = None

    def predict(self) -> float:
        if self._next is None:
            self._next = self._fitted()
        return self._next

    def _fitted(self) -> float:
        values = list(self._values)
        largest = max(values)
        if len(values) < LEAST or min(values) == largest:
            return values[-1]
        with catch_warnings():
            simplefilter("ignore")  # of starts that are not stationary, and the like
            try:
                limit = {"minimize_kwargs": {"options": {"maxiter": STEPS}}}
                model = self._model([v / largest for v in values], order=ORDER)  # in any unit
                fit = model.fit(method="innovations_mle", method_kwargs=limit)
            except (ValueError, ArithmeticError):  # numpy's LinAlgError is a ValueError
                return values[-1]
            return _bounded(float(fit.forecast(1)[0]) * largest, values)


def _bounded(value: float, values: list[float]) -> float:
    """A fit that ran away says nothing: nan, or more than twice what there ever was."""
    return max(0.0, value) if value <= 2 * max(values) else values[-1]


def _model() -> Any:
    """statsmodels' class, imported where it is asked for: it takes seconds."""
    try:
        from statsmodels.tsa.arima.model import ARIMA
    except ImportError as e:
        what = "planner.forecast=arima needs statsmodels"
        raise MissingDependency(what, hint="pip install 'hpc-dynamo[forecast]'") from e
    return ARIMA
