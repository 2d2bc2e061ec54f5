"""How many requests came and went, and how fast lately."""

import time

from hpc_dynamo.messages import Traffic

LONGEST_RETRY_S = 60.0


class Pace:
    """Counts since the start; who counts writes them."""

    def __init__(self) -> None:
        self.requests = self.refused = self.done = 0
        self._rate_hz, self._counted, self._counted_at = 0.0, 0, time.monotonic()

    def traffic(self, *, active: int, queued: int) -> Traffic:
        """The rate is of the time since the last call, smoothed."""
        now = time.monotonic()
        if now > self._counted_at:
            rate_hz = (self.done - self._counted) / (now - self._counted_at)
            self._rate_hz = (self._rate_hz + rate_hz) / 2
            self._counted, self._counted_at = self.done, now
        return Traffic(
            requests=self.requests,
            refused=self.refused,
            active=active,
            queued=queued,
            rate_hz=self._rate_hz,
        )

    def retry_after_s(self, queued: int) -> float:
        """When a line of so many will have been served, as fast as lately."""
        return min(max(queued / max(self._rate_hz, 0.1), 1.0), LONGEST_RETRY_S)
