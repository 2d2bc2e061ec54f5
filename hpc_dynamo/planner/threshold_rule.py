"""Workers that a load needs, by thresholds, without a profile (planner.mode=load).

Prefill: by Little's law, the wait of a prompt is the waiting work divided by the arrival rate, so
that no speed needs to be known. Above `prefill_wait_threshold_s` one more worker is needed, and one
more for each doubling. Below a quarter of it, one worker can be released.

Decode: nothing changes while the KV usage is between `kv_usage_low` and `kv_usage_high`. Otherwise
the need brings the usage to `kv_usage_high`, because usage is proportional to load. Sequence slots
count like the KV cache: if all are in use, more memory does not help.
"""

from math import log2

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.target_split import WorkerNeed

LOW_WAIT_SHARE = 0.25  # share of prefill_wait_threshold_s below which a worker is released
MAX_DOUBLINGS = 8.0


class ThresholdRule:
    """Stateless rule, see the module."""

    def __init__(self, config: Planner) -> None:
        self._config = config

    def need(self, signals: Signals, _expected: ExpectedLoad) -> WorkerNeed:
        """Return the need after an interval; the prediction is not used."""
        return WorkerNeed(_prefill(self._config, signals), _decode(self._config, signals))


def prefill_wait_s(signals: Signals) -> float:
    """Return the wait of a new prompt in seconds.

    The prompt that a worker is computing does not wait. Long prompts as such need no more workers.
    """
    rate_hz, requests = max(signals.rate_hz, 1 / signals.seconds), signals.prefill_requests
    # With all decode slots in use, the queue waits for decode workers.
    queued = signals.queued_requests if signals.slot_usage < 1 else 0
    waiting_share = max(0.0, 1 - 1 / requests) if requests else 0.0
    # Without a tokenizer, all prompts count the same.
    if not signals.prompt_tokens:
        return (waiting_share * requests * signals.prefill + queued) / rate_hz
    computed = max(signals.prompt_tokens * (1 - signals.hit_rate), 1.0)
    prompts = waiting_share * signals.prefill_tokens * signals.prefill / computed
    return (prompts + queued) / rate_hz


def _prefill(config: Planner, signals: Signals) -> float:
    wait = prefill_wait_s(signals) / config.prefill_wait_threshold_s
    if wait > 1:
        return signals.prefill + 1 + min(log2(wait), MAX_DOUBLINGS)
    if wait < LOW_WAIT_SHARE:
        return (signals.prefill - 1) / (1 + config.hysteresis)
    return float(signals.prefill)


def _decode(config: Planner, signals: Signals) -> float:
    waiting = signals.waiting / signals.running if signals.running else 0.0
    usage = max(signals.kv_usage * (1 + waiting), signals.slot_usage)
    if config.kv_usage_low <= usage <= config.kv_usage_high:
        return float(signals.decode)
    return signals.decode * usage / config.kv_usage_high
