"""What a load needs so that the mean request meets both targets, by a profile of one worker.

Prefill: `rate` prompts a second, less what is cached, each taking `prefill_s`. They wait in line
as `queueing` says; TTFT is that wait, the prefill, the transfer of the KV cache and one step of
the decode worker. Prompts that decode workers compute themselves are counted here all the same:
they do so where prefill workers are late, and its price is seen in ITL.

Decode: `n` sequences of the mean length are decoded `itl_s(n)` a token, `n` being the most that
meet the target. One worker then ends n / (answer * itl_s(n)) answers a second (Little's law).

Both are corrected by what is observed over what is expected of the same load, as NVIDIA Dynamo's
planner does: so imbalance, bursts and prompts among the answers are learned.
"""

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.performance import Performance
from hpc_dynamo.planner.queueing import FULL, wait_s, workers_for
from hpc_dynamo.planner.signals import Demand, Signals
from hpc_dynamo.planner.split import Need

LEARN = 0.3  # of a new observation
FURTHEST = 2.0  # that a correction goes from 1, as a factor
LEAST_WAIT = 0.1  # of the TTFT target: less cannot be asked for by adding workers
SLACK = 1.1  # over the least ITL there is, where the target is below it


class Sla:
    """Workers of each role for a demand. Remembers corrections and the share of cached tokens."""

    def __init__(self, config: Planner, performance: Performance) -> None:
        self._config = config
        self._worker = performance
        self.ttft_correction = 1.0
        self.itl_correction = 1.0
        self._hits = 0.0

    def need(self, seen: Signals, expected: Demand) -> Need:
        """After the interval `seen`, for what is expected and what was left waiting."""
        self._learn(seen)
        late = _left_over(seen, self._config.ttft_s) / seen.seconds if seen.seconds else 0.0
        rate = expected.rate_hz + late
        prefill, no_ttft = self._prefill(rate, expected.prompt_tokens)
        decode, no_itl = self._decode(rate, expected, seen)
        return Need(prefill, decode, "; ".join(filter(None, (no_ttft, no_itl))))

    def _learn(self, seen: Signals) -> None:
        if seen.requests:
            self._hits += LEARN * (seen.hit_rate - self._hits)
        service = self._service_s(seen.prompt_tokens)
        calm = seen.prefill and seen.rate_hz * service < FULL * seen.prefill and not seen.queued
        if calm and seen.ttft_s and seen.prompt_tokens:
            line = wait_s(seen.rate_hz, service, seen.prefill)
            expected = line + service + self._after_s(seen.prompt_tokens)
            self.ttft_correction = _corrected(self.ttft_correction, seen.ttft_s, expected)
        if seen.itl_s and seen.running and seen.prompt_tokens:
            expected = self._worker.itl_s(max(1.0, seen.running), _context(seen))
            self.itl_correction = _corrected(self.itl_correction, seen.itl_s, expected)

    def _prefill(self, rate: float, prompt: float) -> tuple[float, str]:
        if not rate or not prompt:
            return 0.0, ""
        target = self._config.ttft_s / self.ttft_correction
        service = self._service_s(prompt)
        left = target - service - self._after_s(prompt)
        lost = f"TTFT: a prompt alone takes {target - left:.2f} s" if left <= 0 else ""
        return workers_for(rate, service, max(left, LEAST_WAIT * target)), lost

    def _decode(self, rate: float, expected: Demand, seen: Signals) -> tuple[float, str]:
        if not rate or not expected.answer_tokens:
            return 0.0, ""
        context = _context(expected)
        least = self.itl_correction * self._worker.itl_s(1.0, context)
        target = max(self._config.itl_s, SLACK * least)
        lost = f"ITL: one sequence alone takes {least:.3f} s" if least > self._config.itl_s else ""
        most = self._sequences(target, context, _room(seen, self._config))
        itl = self.itl_correction * self._worker.itl_s(most, context)
        return rate * expected.answer_tokens * itl / most, lost

    def _sequences(self, itl_s: float, context: float, most: float) -> float:
        """The most of a worker that keep to an ITL, by bisection; ITL rises with them."""
        low, high = 1.0, max(1.0, min(most, float(self._worker.most_sequences)))
        if self.itl_correction * self._worker.itl_s(high, context) <= itl_s:
            return high
        while high - low > 0.01 * high:
            middle = (low + high) / 2
            fits = self.itl_correction * self._worker.itl_s(middle, context) <= itl_s
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _service_s(self, prompt: float) -> float:
        return self._worker.prefill_s(prompt, self._hits * prompt)

    def _after_s(self, prompt: float) -> float:
        """From a computed prompt to the first token."""
        return self._worker.transfer_s(prompt) + self._worker.itl_s(1.0, prompt)


def _context(load: Signals | Demand) -> float:
    """Mean length of a sequence over its answer."""
    return load.prompt_tokens + load.answer_tokens / 2


def _corrected(old: float, observed: float, expected: float) -> float:
    if expected <= 0:
        return old
    ratio = max(1 / FURTHEST, min(observed / expected, FURTHEST))
    return old + LEARN * (ratio - old)


def _left_over(seen: Signals, ttft_s: float) -> float:
    """Requests that wait though they should have their first token, to be worked off next."""
    ahead = seen.ahead_tokens * seen.prefill / seen.prompt_tokens if seen.prompt_tokens else 0.0
    return seen.queued + max(0.0, ahead - seen.rate_hz * ttft_s)


def _room(seen: Signals, config: Planner) -> float:
    """Sequences that fit into a worker's KV cache, by those that run and the share they take."""
    if not seen.running or not seen.kv_usage:
        return float("inf")
    return config.kv_high * seen.running / seen.kv_usage
