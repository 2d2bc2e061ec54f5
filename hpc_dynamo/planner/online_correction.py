"""What observations say of workers beyond their profile: cached prompts, and how much slower."""

from hpc_dynamo.planner.performance import Performance
from hpc_dynamo.planner.queueing import FULL, largest, wait_s
from hpc_dynamo.planner.signals import Demand, Signals

LEARN = 0.3  # of a new observation
FURTHEST = 3.0  # that a factor goes from 1, up or down


class Learned:
    """A worker as it turns out to be: its profile, with three numbers that are learned.

    `hits` is the share of a prompt that is cached. `prefill_factor` makes prompts slower until
    the TTFT that waiting and computing give is the one that is seen, `itl_factor` likewise; they
    have imbalance, bursts, and prompts among answers in them. They are learned only from
    intervals whose every answer was made by the workers that there are now and where no prompts
    had piled up, since these tell of the past. While prefill workers are short they go back to 1.
    """

    def __init__(self, worker: Performance) -> None:
        self._worker = worker
        self.hits, self.prefill_factor, self.itl_factor = 0.0, 1.0, 1.0
        self._split = (-1, -1)
        self._steady_s, self._was_late = 0.0, False

    def observe(self, seen: Signals, late: float) -> None:
        """An interval; `late` prompts wait longer than they should."""
        if seen.requests:
            self.hits += LEARN * (seen.hit_rate - self.hits)
        calm, self._was_late = not late and not self._was_late, bool(late)
        if self._steady(seen) and seen.prompt_tokens:
            if self._short(seen):
                self.prefill_factor += LEARN * (1.0 - self.prefill_factor)
                self.itl_factor += LEARN * (1.0 - self.itl_factor)
                return
            if calm and seen.ttft_s and seen.requests:
                self.prefill_factor += LEARN * (self._slower(seen) - self.prefill_factor)
            if seen.itl_s and seen.running:
                ratio = seen.itl_s / self._worker.itl_s(max(1.0, seen.running), context(seen))
                self.itl_factor += LEARN * (_within(ratio) - self.itl_factor)

    def prefill_s(self, prompt_tokens: float) -> float:
        """Of one prompt, its beginning being cached as is usual."""
        each_s = self._worker.prefill_s(prompt_tokens, self.hits * prompt_tokens)
        return self.prefill_factor * each_s

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return self.itl_factor * self._worker.itl_s(sequences, context_tokens)

    def after_s(self, prompt_tokens: float) -> float:
        """From a computed prompt to the first token: the way of its KV cache, one step."""
        one_step_s = self._worker.itl_s(1.0, prompt_tokens)
        return self._worker.transfer_s(prompt_tokens) + one_step_s

    def _steady(self, seen: Signals) -> bool:
        split, before = (seen.prefill, seen.decode), self._split
        self._split = split
        if split != before or seen.moving:
            self._steady_s = 0.0
            return False
        self._steady_s += seen.seconds
        return self._steady_s >= seen.answer_tokens * seen.itl_s

    def _short(self, seen: Signals) -> bool:
        """Of prefill workers: then decode workers compute prompts among their answers, which
        shows a good TTFT and a bad ITL, and says nothing of either role."""
        prompt = seen.prompt_tokens
        busy = seen.rate_hz * self._worker.prefill_s(prompt, self.hits * prompt)
        return busy > FULL * seen.prefill

    def _slower(self, seen: Signals) -> float:
        """The factor that explains the TTFT of an interval."""
        prompt = seen.prompt_tokens
        each_s = self._worker.prefill_s(prompt, self.hits * prompt)
        left_s = seen.ttft_s - self.after_s(prompt)

        def no_more(factor: float) -> bool:
            service_s = factor * each_s
            return wait_s(seen.rate_hz, service_s, seen.prefill) + service_s <= left_s

        return largest(no_more, 1 / FURTHEST, FURTHEST)


def context(load: Signals | Demand) -> float:
    """Mean length of a sequence over its answer, in tokens."""
    return load.prompt_tokens + load.answer_tokens / 2


def _within(ratio: float) -> float:
    return max(1 / FURTHEST, min(ratio, FURTHEST))
