"""Time left before the end of the allocation, and how much of it is reserved for the shutdown."""

import math
import time
from collections import deque

EARLY_SIGNAL_S = 60.0  # Slurm may signal the end of the walltime this much too early
SHUTDOWN_SHARE = 1 / 3  # part of the time after the signal, for the shutdown
MIN_LEFT_S = 10.0  # no request starts later than this before the shutdown
KEPT_DURATIONS = 512
DURATION_QUANTILE = 0.95


class RequestDurations:
    """Durations of the latest requests, to predict that of the next one."""

    def __init__(self) -> None:
        self._durations = deque[float](maxlen=KEPT_DURATIONS)

    def add(self, seconds: float) -> None:
        self._durations.append(seconds)

    @property
    def p95_s(self) -> float:
        """Return the 95th percentile in seconds; 0 before any request has ended."""
        if not self._durations:
            return 0.0
        index = min(int(DURATION_QUANTILE * len(self._durations)), len(self._durations) - 1)
        return sorted(self._durations)[index]


class Walltime:
    """End of the allocation. `ends_at` is in seconds since the epoch; None means no end."""

    def __init__(self, ends_at: float | None, signal_s: float) -> None:
        """`signal_s` is the time from Slurm's signal to the end, as the job requested it."""
        self.ends_at = ends_at
        self._shutdown_s, self._signal_s = SHUTDOWN_SHARE * signal_s, signal_s

    @property
    def time_left_s(self) -> float:
        """Return the time until running requests are cancelled for an orderly shutdown."""
        return math.inf if self.ends_at is None else self.ends_at - self._shutdown_s - time.time()

    def dispatch_left_s(self, request_s: float) -> float:
        """Return the time until no request of `request_s` seconds may start any more."""
        return self.time_left_s - max(request_s, self._signal_s - self._shutdown_s)

    def left_after_signal_s(self) -> float:
        """Return the time left after Slurm's signal, which may also announce a preemption."""
        return min(self.time_left_s, self._signal_s - self._shutdown_s)

    def handover_left_s(self, request_s: float) -> float:
        """Return the time until a job that hands over must stop serving or forwarding requests."""
        return self.time_left_s - max(request_s, MIN_LEFT_S)

    def after_signal(self) -> "Walltime":
        """Return the walltime with the end that Slurm's signal has just announced."""
        return Walltime(time.time() + self.left_after_signal_s() + self._shutdown_s, self._signal_s)

    def signal_was_early(self, request_s: float) -> bool:
        """Return True if the signal announces the end of the walltime and came before its time."""
        return 0 < self.dispatch_left_s(request_s) <= EARLY_SIGNAL_S
