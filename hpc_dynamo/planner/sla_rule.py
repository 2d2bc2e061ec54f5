"""What a load needs so that the mean request meets both targets, by a profile of one worker.

Prefill: `rate` prompts a second, less what is cached, each taking `prefill_s`. They wait in line
as `queueing` says; TTFT is that wait, the prefill, the transfer of the KV cache and one step of
the decode worker. Prompts that decode workers compute themselves are counted here all the same:
they do so where prefill workers are late, and its price is seen in ITL.

Decode: `n` sequences of the mean length are decoded `itl_s(n)` a token, `n` being the most that
meet the target. One worker then makes n / itl_s(n) tokens a second, of `rate` * answer that are
to be made; or of those that are made now, where they are more: of a load that turns to longer
answers the sequences that run tell first, long before the first of them ends.

The profile is corrected by what is observed (`learned`), as NVIDIA Dynamo's planner does.
"""

from hpc_dynamo.config import Planner
from hpc_dynamo.planner.online_correction import OnlineCorrection, mean_context_tokens
from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.queueing import MAX_UTILIZATION, largest_fitting, workers_for
from hpc_dynamo.planner.signals import ExpectedLoad, Signals
from hpc_dynamo.planner.target_split import WorkerNeed

MIN_WAIT_SHARE = 0.1  # of the TTFT target: less cannot be asked for by adding workers
ITL_SLACK = 1.1  # over the least ITL there is, where the target is below it
HEADROOM = 0.7  # of the ITL target is planned for: it is for each request, a plan for the mean


class SlaRule:
    """Workers of each role for a demand. Remembers what is learned of them."""

    def __init__(self, config: Planner, performance: WorkerPerformance) -> None:
        self._config = config
        self._most_sequences = MAX_UTILIZATION * performance.max_sequences
        self.correction = OnlineCorrection(performance)

    def need(self, seen: Signals, expected: ExpectedLoad) -> WorkerNeed:
        """After the interval `seen`, for what is expected and what was left waiting."""
        late = _backlog(seen, expected, self._config.ttft_s)
        self.correction.observe(seen, late)
        rate = expected.rate_hz + late / seen.seconds if seen.seconds else expected.rate_hz
        prefill, no_ttft = self._prefill(rate, expected.prompt_tokens)
        decode, no_itl = self._decode(rate, expected, seen)
        return WorkerNeed(prefill, decode, "; ".join(filter(None, (no_ttft, no_itl))))

    def _prefill(self, rate: float, prompt: float) -> tuple[float, str]:
        if not rate or not prompt:
            return 0.0, ""
        target, service = self._config.ttft_s, self.correction.prefill_s(prompt)
        left = target - service - self.correction.first_token_s(prompt)
        lost = f"TTFT: a prompt alone takes {target - left:.2f} s" if left <= 0 else ""
        return workers_for(rate, service, max(left, MIN_WAIT_SHARE * target)), lost

    def _decode(self, rate: float, expected: ExpectedLoad, seen: Signals) -> tuple[float, str]:
        length = mean_context_tokens(expected)
        tokens_hz = max(rate * expected.answer_tokens, self._made_hz(seen, length))
        if not tokens_hz:
            return 0.0, ""
        least = self.correction.itl_s(1.0, length)
        lost = f"ITL: one sequence alone takes {least:.3f} s" if least > self._config.itl_s else ""
        most = self._sequences(max(HEADROOM * self._config.itl_s, ITL_SLACK * least), length, seen)
        return tokens_hz * self.correction.itl_s(most, length) / most, lost

    def _made_hz(self, seen: Signals, length: float) -> float:
        """Tokens a second that decode workers make of what runs at this moment."""
        return seen.running * seen.decode / self.correction.itl_s(max(1.0, seen.running), length)

    def _sequences(self, itl_s: float, length: float, seen: Signals) -> float:
        """The most of a worker that keep to an ITL and fit into its cache."""
        most = min(self._most_sequences, _room(seen, self._config))
        return largest_fitting(
            lambda n: self.correction.itl_s(n, length) <= itl_s, 1.0, max(1.0, most)
        )


def _backlog(seen: Signals, expected: ExpectedLoad, ttft_s: float) -> float:
    """Requests that wait though they should have their first token, to be worked off next."""
    prompt = seen.prompt_tokens or expected.prompt_tokens
    ahead = seen.prefill_tokens * seen.prefill / prompt if prompt else 0.0
    return seen.queued_requests + max(0.0, ahead - seen.rate_hz * ttft_s)


def _room(seen: Signals, config: Planner) -> float:
    """Sequences that fit into a worker's KV cache, by those that run and the share they take."""
    if not seen.running or not seen.kv_usage:
        return float("inf")
    return config.kv_usage_high * seen.running / seen.kv_usage
