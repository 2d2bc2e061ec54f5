"""Probe of a batch: the results in its status file."""

import time

from hpc_dynamo.cli.chaos.probe import Probe, ProbeResult
from hpc_dynamo.messages import Progress
from hpc_dynamo.run import Attempt

POLL_S = 0.2
FAILED = "a request of the batch failed"


class BatchProbe(Probe):
    """Counts each finished request of a batch as answered, or as lost if it failed.

    The batch itself repeats the requests that a fault interrupts, so none is left unanswered.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(POLL_S)
        self._attempt = attempt
        self._seen = self._progress()

    def _step(self) -> None:
        """Add what has finished since the last call. A restarted head begins with less."""
        before, self._seen, at = self._seen, self._progress(), time.monotonic()
        done, failed = self._seen.done - before.done, self._seen.failed - before.failed
        self.results += [ProbeResult(at, at)] * max(done, 0)
        self.results += [ProbeResult(at, at, FAILED)] * max(failed, 0)

    def _progress(self) -> Progress:
        status = self._attempt.status()
        return status.progress if status else Progress()
