"""What a load needs by thresholds alone, without a profile.

Prefill: the time that a prompt waits is what waits over what comes (Little's law), so no speed
need be known. Above `queue_high_s` a worker more is needed, and one more for each doubling; below
a quarter of it one can be spared. Decode: between `kv_low` and `kv_high` of the caches nothing is
asked for; outside, as many as would bring the caches to `kv_high`, as cache use goes with load.
Slots for sequences count like caches: where all are taken, more room for tokens is of no use.
"""

from math import log2

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.target_split import WorkerNeed

LOW_WAIT_SHARE = 0.25  # of queue_high_s
MAX_DOUBLINGS = 8.0


class ThresholdRule:
    """Workers of each role by thresholds. Remembers nothing."""

    def __init__(self, config: Planner) -> None:
        self._config = config

    def need(self, seen: Signals, _expected: ExpectedLoad) -> WorkerNeed:
        """After the interval `seen`; a forecast says nothing here."""
        return WorkerNeed(_prefill(self._config, seen), _decode(self._config, seen))


def prefill_wait_s(seen: Signals) -> float:
    """Time that a prompt waits for prefill, from the interval's end. The one that a worker
    computes does not wait: long prompts alone are no reason for more workers."""
    comes = max(seen.rate_hz, 1 / seen.seconds)
    line = (
        seen.queued_requests if seen.slot_usage < 1 else 0
    )  # else it is decode workers that are waited for
    waiting = (
        max(0.0, 1 - 1 / seen.prefill_requests) if seen.prefill_requests else 0.0
    )  # of a worker's, as a share
    if not seen.prompt_tokens:  # nobody tokenizes here: prompts count alike
        return (waiting * seen.prefill_requests * seen.prefill + line) / comes
    computed = max(seen.prompt_tokens * (1 - seen.hit_rate), 1.0)
    return (waiting * seen.prefill_tokens * seen.prefill / computed + line) / comes


def _prefill(config: Planner, seen: Signals) -> float:
    high = prefill_wait_s(seen) / config.prefill_wait_threshold_s
    if high > 1:
        return seen.prefill + 1 + min(log2(high), MAX_DOUBLINGS)
    return (
        (seen.prefill - 1) / (1 + config.hysteresis)
        if high < LOW_WAIT_SHARE
        else float(seen.prefill)
    )


def _decode(config: Planner, seen: Signals) -> float:
    waiting = seen.waiting / seen.running if seen.running else 0.0
    usage = max(seen.kv_usage * (1 + waiting), seen.slot_usage)
    if config.kv_usage_low <= usage <= config.kv_usage_high:
        return float(seen.decode)
    return seen.decode * usage / config.kv_usage_high
