"""What every predictor keeps."""

from typing import Protocol


class Predictor(Protocol):
    """Of one series, one value an interval: finite, 0 or more. So is what it predicts."""

    def observe(self, value: float) -> None:
        """The interval that ended."""

    def predict(self) -> float:
        """The next one, as often as it is asked; 0 before any was observed."""
