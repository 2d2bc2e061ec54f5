"""Exponential backoff between tries of something that fails."""


class Backoff:
    """Delay that doubles with every failure in a row, from `first_s` up to `longest_s` seconds."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._failures, self._not_before = 0, float("-inf")

    def failed(self, now: float = 0.0) -> float:
        """Count a failure at the time `now`; return the delay until the next try in seconds."""
        delay_s = min(self._first_s * 2.0**self._failures, self._longest_s)
        self._failures += 1
        self._not_before = now + delay_s
        return delay_s

    def succeeded(self) -> None:
        """Start again from the shortest delay. A delay that runs already still counts."""
        self._failures = 0

    def allows(self, now: float) -> bool:
        """Return True if the delay after the last failure is over at the time `now`."""
        return now >= self._not_before
