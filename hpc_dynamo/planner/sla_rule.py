"""Workers that a load needs to meet both latency targets for the mean request (planner.mode=sla).

Prefill: TTFT is the wait in a queue (`queueing`), the prefill of the uncached tokens, the KV
transfer and one decode step. The need is the fewest workers that meet the target. Prompts that
decode workers compute count as well: they do so only if prefill workers are overloaded.

Decode: `n` is the most sequences whose ITL meets the target, so that a worker generates n /
itl_s(n) tokens per second. The need is the expected token rate divided by it, or the current token
rate if that is higher. The running sequences show longer responses before the first of them
finishes.

The profile is corrected online, as NVIDIA Dynamo's planner does.
"""

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.online_correction import OnlineCorrection, mean_context_tokens
from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.queueing import MAX_UTILIZATION, largest_fitting, workers_for
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.target_split import WorkerNeed

MIN_WAIT_SHARE = 0.1  # lower bound of the wait, as a share of the TTFT target
ITL_SLACK = 1.1  # factor over the minimum ITL, for a target below it
# Share of the ITL target to plan for: a target is per request, a plan is for the mean request.
HEADROOM = 0.7


class SlaRule:
    """Computes the need by the corrected profile of a worker."""

    def __init__(self, config: Planner, performance: WorkerPerformance) -> None:
        self._config = config
        self._max_sequences = MAX_UTILIZATION * performance.max_sequences
        self.correction = OnlineCorrection(performance)

    def need(self, signals: Signals, expected: ExpectedLoad) -> WorkerNeed:
        """Return the need for the expected load and the backlog of the last interval."""
        backlog = _backlog(signals, expected, self._config.ttft_s)
        self.correction.observe(signals, backlog)
        rate_hz = expected.rate_hz + (backlog / signals.seconds if signals.seconds else 0.0)
        prefill, ttft_error = self._prefill(rate_hz, expected.prompt_tokens)
        decode, itl_error = self._decode(rate_hz, expected, signals)
        return WorkerNeed(prefill, decode, "; ".join(filter(None, (ttft_error, itl_error))))

    def _prefill(self, rate_hz: float, prompt_tokens: float) -> tuple[float, str]:
        """Return the workers, and why no number of them meets the target."""
        if not rate_hz or not prompt_tokens:
            return 0.0, ""
        target_s, service_s = self._config.ttft_s, self.correction.prefill_s(prompt_tokens)
        max_wait_s = target_s - service_s - self.correction.first_token_s(prompt_tokens)
        error = ""
        if max_wait_s <= 0:
            error = f"TTFT: a single prompt takes {target_s - max_wait_s:.2f} s"
        return workers_for(rate_hz, service_s, max(max_wait_s, MIN_WAIT_SHARE * target_s)), error

    def _decode(
        self, rate_hz: float, expected: ExpectedLoad, signals: Signals
    ) -> tuple[float, str]:
        """Return the workers, and why no number of them meets the target."""
        context = mean_context_tokens(expected)
        tokens_hz = max(rate_hz * expected.answer_tokens, self._token_rate_hz(signals, context))
        if not tokens_hz:
            return 0.0, ""
        target_s, min_itl_s = self._config.itl_s, self.correction.itl_s(1.0, context)
        error = f"ITL: a single sequence takes {min_itl_s:.3f} s" if min_itl_s > target_s else ""
        goal_s = max(HEADROOM * target_s, ITL_SLACK * min_itl_s)
        sequences = self._sequences(goal_s, context, signals)
        return tokens_hz * self.correction.itl_s(sequences, context) / sequences, error

    def _token_rate_hz(self, signals: Signals, context: float) -> float:
        """Return the tokens per second of the running sequences."""
        running = signals.running
        return running * signals.decode / self.correction.itl_s(max(1.0, running), context)

    def _sequences(self, itl_s: float, context: float, signals: Signals) -> float:
        """Return the most sequences of a worker that meet an ITL and fit into its KV cache."""
        limit = min(self._max_sequences, _cache_limit(signals, self._config))

        def fits(sequences: float) -> bool:
            return self.correction.itl_s(sequences, context) <= itl_s

        return largest_fitting(fits, 1.0, max(1.0, limit))


def _backlog(signals: Signals, expected: ExpectedLoad, ttft_s: float) -> float:
    """Return the waiting requests that exceed what the TTFT target allows."""
    prompt = signals.prompt_tokens or expected.prompt_tokens
    waiting = signals.prefill_tokens * signals.prefill / prompt if prompt else 0.0
    return signals.queued_requests + max(0.0, waiting - signals.rate_hz * ttft_s)


def _cache_limit(signals: Signals, config: Planner) -> float:
    """Return the sequences that fit into a worker's KV cache, by its current usage."""
    if not signals.running or not signals.kv_usage:
        return float("inf")
    return config.kv_usage_high * signals.running / signals.kv_usage
