"""When a job must have ended, and when it must begin to end."""

import math
import time
from collections import deque

EARLY_SIGNAL_S = 60.0  # Slurm may send the signal of the walltime's end so much too early
SHUTDOWN_SHARE = 1 / 3  # of the time from that signal to the end: kept free for the end of agents
MIN_LEFT_S = 10.0  # nothing begins so shortly before the end, however short requests are
KEPT_DURATIONS = 512  # durations remembered
DURATION_QUANTILE = 0.95  # share of requests that take no longer than is predicted


class RequestDurations:
    """How long the latest requests took."""

    def __init__(self) -> None:
        self._seen = deque[float](maxlen=KEPT_DURATIONS)

    def add(self, seconds: float) -> None:
        self._seen.append(seconds)

    @property
    def p95_s(self) -> float:
        """What the next request will hardly exceed; 0 before any has ended."""
        if not self._seen:
            return 0.0
        return sorted(self._seen)[
            min(int(DURATION_QUANTILE * len(self._seen)), len(self._seen) - 1)
        ]


class Walltime:
    """The end of the allocation. `ends_at` in seconds since the epoch; None: there is no end."""

    def __init__(self, ends_at: float | None, signal_s: float) -> None:
        """`signal_s`: the longest that the way to the end takes, from the signal before it."""
        self.ends_at = ends_at
        self._kept_s, self._signal_s = SHUTDOWN_SHARE * signal_s, signal_s

    @property
    def time_left_s(self) -> float:
        """Until what is under way is broken off, so that agents end in order."""
        return math.inf if self.ends_at is None else self.ends_at - self._kept_s - time.time()

    def dispatch_left_s(self, request_s: float) -> float:
        """Until a request must no longer begin, when one takes `likely_s`."""
        return self.time_left_s - max(request_s, self._signal_s - self._kept_s)

    def left_after_signal_s(self) -> float:
        """What is left after Slurm's signal: it may come because the job is preempted, too."""
        return min(self.time_left_s, self._signal_s - self._kept_s)

    def handover_left_s(self, request_s: float) -> float:
        """As `spare_s` for a job that hands over: it takes requests, or passes them on, for as long
        as they are likely to end."""
        return self.time_left_s - max(request_s, MIN_LEFT_S)

    def after_signal(self) -> "Walltime":
        """The end as it is after Slurm's signal."""
        return Walltime(time.time() + self.left_after_signal_s() + self._kept_s, self._signal_s)

    def signal_was_early(self, request_s: float) -> bool:
        """Whether the signal is the walltime's own, come before its time; the clock knows."""
        return 0 < self.dispatch_left_s(request_s) <= EARLY_SIGNAL_S
