"""Counts of requests, the recent rate, and the errors of rejected requests."""

import time
from collections.abc import Callable, Sequence

from hpc_dynamo.messages import Traffic
from hpc_dynamo.router.scheduling.lease import NoWorker, Overloaded

MAX_RETRY_AFTER_S = 60.0


class Throughput:
    """Counts since the start of the router, which increments them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.requests = self.refused = self.finished = 0
        self._rate_hz, self._counted, self._counted_at = 0.0, 0, clock()

    def traffic(self, *, active: int, queued: int) -> Traffic:
        """Return the counts. Each call updates the rate, a mean over the last calls."""
        now = self._clock()
        if now > self._counted_at:
            rate_hz = (self.finished - self._counted) / (now - self._counted_at)
            self._rate_hz = (self._rate_hz + rate_hz) / 2
            self._counted, self._counted_at = self.finished, now
        return Traffic(
            requests=self.requests,
            refused=self.refused,
            active=active,
            queued=queued,
            rate_hz=self._rate_hz,
        )

    def queue_full(self, queued: int) -> Overloaded:
        """Count a rejected request and return its error."""
        what = f"the queue is full: {queued} requests are waiting (serve.max_queued_requests)"
        return self._rejected(what, queued)

    def too_many_worker_sets(self, queued: int) -> Overloaded:
        """Count a rejected request and return its error."""
        return self._rejected("requests for too many different sets of workers wait", queued)

    def _rejected(self, what: str, queued: int) -> Overloaded:
        self.refused += 1
        return Overloaded(what, status=429, retry_after_s=self._retry_after_s(queued))

    def queue_timeout(
        self, queued: int, limit_s: float, missing: Sequence[str]
    ) -> NoWorker | Overloaded:
        """Count a request that waited too long and return its error; `missing` lists roles."""
        self.refused += 1
        if missing:
            what = f"no {' and no '.join(missing)} worker became ready within {limit_s:.0f} s"
            return NoWorker(what)
        what = f"no worker had room within {limit_s:.0f} s (serve.queue_timeout_s)"
        return Overloaded(what, status=503, retry_after_s=self._retry_after_s(queued))

    def _retry_after_s(self, queued: int) -> float:
        """Return the time to serve this queue at the recent rate."""
        return min(max(queued / max(self._rate_hz, 0.1), 1.0), MAX_RETRY_AFTER_S)
