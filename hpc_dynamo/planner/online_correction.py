"""What observations say of workers beyond their profile: cached prompts, and how much slower."""

from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.queueing import MAX_UTILIZATION, largest_fitting, wait_s
from hpc_dynamo.planner.signals import ExpectedLoad, Signals

LEARNING_RATE = 0.3  # of a new observation
MAX_FACTOR = 3.0  # that a factor goes from 1, up or down


class OnlineCorrection:
    """A worker as it turns out to be: its profile, with three numbers that are learned.

    `hits` is the share of a prompt that is cached. `prefill_factor` makes prompts slower until
    the TTFT that waiting and computing give is the one that is seen, `itl_factor` likewise; they
    have imbalance, bursts, and prompts among answers in them. They are learned only from
    intervals whose every answer was made by the workers that there are now and where no prompts
    had piled up, since these tell of the past. While prefill workers are short they go back to 1.
    """

    def __init__(self, worker: WorkerPerformance) -> None:
        self._worker = worker
        self.hit_rate, self.prefill_factor, self.itl_factor = 0.0, 1.0, 1.0
        self._split = (-1, -1)
        self._steady_s, self._was_late = 0.0, False

    def observe(self, seen: Signals, late: float) -> None:
        """An interval; `late` prompts wait longer than they should."""
        if seen.requests:
            self.hit_rate += LEARNING_RATE * (seen.hit_rate - self.hit_rate)
        calm, self._was_late = not late and not self._was_late, bool(late)
        if self._steady(seen) and seen.prompt_tokens:
            if self._prefill_short(seen):
                self.prefill_factor += LEARNING_RATE * (1.0 - self.prefill_factor)
                self.itl_factor += LEARNING_RATE * (1.0 - self.itl_factor)
                return
            if calm and seen.ttft_s and seen.requests:
                self.prefill_factor += LEARNING_RATE * (
                    self._explaining_factor(seen) - self.prefill_factor
                )
            if seen.itl_s and seen.running:
                ratio = seen.itl_s / self._worker.itl_s(
                    max(1.0, seen.running), mean_context_tokens(seen)
                )
                self.itl_factor += LEARNING_RATE * (_within(ratio) - self.itl_factor)

    def prefill_s(self, prompt_tokens: float) -> float:
        """Of one prompt, its beginning being cached as is usual."""
        each_s = self._worker.prefill_s(prompt_tokens, self.hit_rate * prompt_tokens)
        return self.prefill_factor * each_s

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return self.itl_factor * self._worker.itl_s(sequences, context_tokens)

    def first_token_s(self, prompt_tokens: float) -> float:
        """From a computed prompt to the first token: the way of its KV cache, one step."""
        one_step_s = self._worker.itl_s(1.0, prompt_tokens)
        return self._worker.transfer_s(prompt_tokens) + one_step_s

    def _steady(self, seen: Signals) -> bool:
        split, before = (seen.prefill, seen.decode), self._split
        self._split = split
        if split != before or seen.changing_role:
            self._steady_s = 0.0
            return False
        self._steady_s += seen.seconds
        return self._steady_s >= seen.answer_tokens * seen.itl_s

    def _prefill_short(self, seen: Signals) -> bool:
        """Of prefill workers: then decode workers compute prompts among their answers, which
        shows a good TTFT and a bad ITL, and says nothing of either role."""
        prompt = seen.prompt_tokens
        busy = seen.rate_hz * self._worker.prefill_s(prompt, self.hit_rate * prompt)
        return busy > MAX_UTILIZATION * seen.prefill

    def _explaining_factor(self, seen: Signals) -> float:
        """The factor that explains the TTFT of an interval."""
        prompt = seen.prompt_tokens
        each_s = self._worker.prefill_s(prompt, self.hit_rate * prompt)
        left_s = seen.ttft_s - self.first_token_s(prompt)

        def no_more(factor: float) -> bool:
            service_s = factor * each_s
            return wait_s(seen.rate_hz, service_s, seen.prefill) + service_s <= left_s

        return largest_fitting(no_more, 1 / MAX_FACTOR, MAX_FACTOR)


def mean_context_tokens(load: Signals | ExpectedLoad) -> float:
    """Mean length of a sequence over its answer, in tokens."""
    return load.prompt_tokens + load.answer_tokens / 2


def _within(ratio: float) -> float:
    return max(1 / MAX_FACTOR, min(ratio, MAX_FACTOR))
