"""When does an engine hang? All limits are here.

An engine makes progress if its own counters of requests and tokens change, or if it answers a
canary: a request for one token, which passes through its queue and its model. Answers to /health
are no progress.

- Half of `engine.hang_timeout_s` without progress: a canary is sent.
- No progress in the other half, nor in WAIT_FACTOR times the longest wait that has ended well so
  far: the engine hangs.
- While the engine computes, time counts 1 / COMPUTING_FACTOR: it may compile a kernel, or a step
  may take long on a busy machine.
- A stopped shard of a multi-node worker hangs after `engine.hang_timeout_s`.
- While it sleeps, or this process was stopped itself, time does not count.
"""

from hpc_dynamo.process.session import SessionUsage, wanted_cpus

CHECKS = 8  # per hang_timeout_s
MAX_INTERVAL_S = 2.5
WAIT_FACTOR = 4.0
COMPUTING_FACTOR = 10.0
COMPUTING_CPUS = 0.2  # CPUs that a computing engine uses on an idle machine


def check_interval_s(timeout_s: float) -> float:
    """Return the time between two checks of an engine."""
    return min(timeout_s / CHECKS, MAX_INTERVAL_S)


class HangDetector:
    """Time without progress of one engine, and its limit."""

    def __init__(self, timeout_s: float) -> None:
        self.interval_s = check_interval_s(timeout_s)
        self._canary_after_s = timeout_s / 2
        self._min_wait_s = timeout_s - self._canary_after_s
        self._longest_wait_s = 0.0
        self._quiet_s = 0.0

    @property
    def needs_canary(self) -> bool:
        return self._quiet_s >= self._canary_after_s

    @property
    def limit_s(self) -> float:
        """Return the time without progress after which the engine hangs."""
        wait_s = max(self._min_wait_s, WAIT_FACTOR * self._longest_wait_s)
        return self._canary_after_s + wait_s

    @property
    def hung(self) -> bool:
        return self._quiet_s >= self.limit_s

    def on_progress(self) -> None:
        """Count a sign of progress, and remember how long it was awaited."""
        self._longest_wait_s = max(self._longest_wait_s, self._quiet_s - self._canary_after_s)
        self._quiet_s = 0.0

    def on_tick(self, elapsed_s: float, *, computing: bool = False) -> None:
        """Count time without progress."""
        counted_s = min(elapsed_s, 2 * self.interval_s)
        self._quiet_s += counted_s / COMPUTING_FACTOR if computing else counted_s

    def reset(self) -> None:
        """Forget the time without progress."""
        self._quiet_s = 0.0


def is_computing(before: SessionUsage | None, now: SessionUsage | None) -> bool:
    """Return True if the processes of an engine have computed, or are unknown.

    One that is stopped blocks the others, even if they use CPU while they wait for it.
    """
    if before is None or now is None:
        return True
    # On a busy machine most of what a compiler does is in children that have ended.
    compiled = now.children_s > before.children_s
    return not now.stopped and (compiled or wanted_cpus(before, now) >= COMPUTING_CPUS)
