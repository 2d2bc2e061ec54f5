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


class RestartLimit:
    """Limit of the restarts of something within `window_s`, with growing delays between them.

    The first restart is immediate. Failures before the window are forgotten only if the last start
    has succeeded, so that slow starts that all fail reach the limit too.
    """

    def __init__(self, max_restarts: int, window_s: float, longest_delay_s: float = 30.0) -> None:
        self._max_restarts, self._window_s = max_restarts, window_s
        self._longest_delay_s = longest_delay_s
        self._failed_at = list[float]()
        self._succeeded = False

    def succeeded(self) -> None:
        """Note that the last start has succeeded."""
        self._succeeded = True

    def failed(self, now: float) -> int:
        """Count a failure; return the number of restarts left before this one, 0 if none is."""
        if self._succeeded:
            self._failed_at = [at for at in self._failed_at if now - at < self._window_s]
        self._succeeded = False
        self._failed_at.append(now)
        return max(0, self._max_restarts + 1 - len(self._failed_at))

    @property
    def delay_s(self) -> float:
        """Delay until the next restart."""
        row = len(self._failed_at)
        return 0.0 if row < 2 else min(2.0 ** (row - 2), self._longest_delay_s)
