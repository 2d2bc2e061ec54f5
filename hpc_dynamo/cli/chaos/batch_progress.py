"""Results of a batch while faults happen, in place of the answers to a client."""

import threading
import time

from hpc_dynamo.cli.chaos.probe import ProbeResult
from hpc_dynamo.messages import Progress
from hpc_dynamo.run import Attempt

POLL_S = 0.2
FAILED = "a request of the batch failed"


class BatchProgress:
    """Counts each finished request of a batch as answered, or as lost if it failed."""

    unanswered = 0  # requests that run are started again by the batch itself

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._seen = self._now()
        self._stopped = threading.Event()
        self._main = threading.Thread(target=self._run, daemon=True)
        self.results = list[ProbeResult]()

    def __enter__(self) -> "BatchProgress":
        self._main.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._main.join()

    def wait(self, timeout_s: float) -> None:
        """Return at once: a batch continues after the faults."""

    def answered_after(self, moment: float) -> float | None:
        """Return when the first result after `moment` was seen."""
        return next(
            (r.ended_at for r in self.results if r.began_at >= moment and not r.error), None
        )

    def _now(self) -> Progress:
        status = self._attempt.status()
        return status.progress if status else Progress()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            self._count(self._now())

    def _count(self, progress: Progress) -> None:
        """Add what has finished since the last call. A restarted head begins with less."""
        before, self._seen, at = self._seen, progress, time.monotonic()
        failed = max(progress.failed - before.failed, 0)
        self.results += [ProbeResult(at, at, "")] * max(progress.done - before.done, 0)
        self.results += [ProbeResult(at, at, FAILED)] * failed
