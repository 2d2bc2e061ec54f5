"""Observation of a run while faults happen: which requests are answered, and when."""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class ProbeResult:
    """Result of one request. Times are those of `time.monotonic`; `error` is empty if answered."""

    began_at: float
    ended_at: float
    error: str = ""


class Probe(ABC):
    """Collects results of requests, in a thread of its own inside its `with` block."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s, self._stopped = interval_s, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.results = list[ProbeResult]()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def answered_after(self, moment: float) -> float | None:
        """Return when the first request that began after `moment` was answered."""
        ends = (r.ended_at for r in self.results if r.began_at >= moment and not r.error)
        return min(ends, default=None)

    @property
    def unanswered(self) -> int:
        """Return the number of requests that have not ended; they count as lost."""
        return 0

    def wait(self, timeout_s: float) -> None:  # noqa: B027  # a batch has nothing to wait for
        """Wait until all requests have ended, at most `timeout_s`."""

    @abstractmethod
    def _step(self) -> None:
        """Send a request, or collect results. Called every `interval_s`."""

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._step()
            self._stopped.wait(self._interval_s)
