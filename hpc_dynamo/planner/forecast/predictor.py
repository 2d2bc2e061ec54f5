"""Interface of the predictors."""

from typing import Protocol


class Predictor(Protocol):
    """Predicts a series with one value per interval; values are finite and at least 0."""

    def observe(self, value: float) -> None:
        """Add the value of the last interval."""

    def predict(self) -> float:
        """Return the next value, 0 before the first observation. Does not change the state."""
