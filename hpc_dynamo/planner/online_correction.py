"""Corrects a worker's profile by observations: cached prompts, and slower prompts and tokens."""

from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.queueing import MAX_UTILIZATION, largest_fitting, wait_s
from hpc_dynamo.planner.signals import ExpectedLoad, Signals

LEARNING_RATE = 0.3  # weight of a new observation
MAX_FACTOR = 3.0  # bound of the factors: from 1/3 to 3


class OnlineCorrection:
    """The profile of a worker with three learned numbers.

    `hit_rate` is the cached share of a prompt. `prefill_factor` scales prefill times so that wait
    and prefill explain the observed TTFT; `itl_factor` scales the ITL. They include imbalance,
    bursts, and prefills between decode steps. They are updated only from intervals with an
    unchanged role split and no prefill backlog. While prefill workers are short, both decay to 1.
    """

    def __init__(self, worker: WorkerPerformance) -> None:
        self._worker = worker
        self.hit_rate, self.prefill_factor, self.itl_factor = 0.0, 1.0, 1.0
        self._split = (-1, -1)
        self._steady_s, self._had_backlog = 0.0, False

    def observe(self, signals: Signals, backlog: float) -> None:
        """Update the numbers from an interval; `backlog` prompts exceed their TTFT target."""
        if signals.requests:
            self.hit_rate += LEARNING_RATE * (signals.hit_rate - self.hit_rate)
        calm, self._had_backlog = not backlog and not self._had_backlog, bool(backlog)
        if not self._steady(signals) or not signals.prompt_tokens:
            return
        if self._prefill_short(signals):
            self.prefill_factor += LEARNING_RATE * (1.0 - self.prefill_factor)
            self.itl_factor += LEARNING_RATE * (1.0 - self.itl_factor)
            return
        if calm and signals.ttft_s and signals.requests:
            factor = self._explaining_factor(signals)
            self.prefill_factor += LEARNING_RATE * (factor - self.prefill_factor)
        if signals.itl_s and signals.running:
            running, context = max(1.0, signals.running), mean_context_tokens(signals)
            ratio = signals.itl_s / self._worker.itl_s(running, context)
            factor = max(1 / MAX_FACTOR, min(ratio, MAX_FACTOR))
            self.itl_factor += LEARNING_RATE * (factor - self.itl_factor)

    def prefill_s(self, prompt_tokens: float) -> float:
        """Return the prefill time of a prompt with the usual share cached."""
        return self.prefill_factor * self._profile_prefill_s(prompt_tokens)

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return self.itl_factor * self._worker.itl_s(sequences, context_tokens)

    def first_token_s(self, prompt_tokens: float) -> float:
        """Return the time from the end of a prefill to the first token: transfer and one step."""
        return self._worker.transfer_s(prompt_tokens) + self._worker.itl_s(1.0, prompt_tokens)

    def _profile_prefill_s(self, prompt_tokens: float) -> float:
        return self._worker.prefill_s(prompt_tokens, self.hit_rate * prompt_tokens)

    def _steady(self, signals: Signals) -> bool:
        """Return True if all finished responses were generated with the current split."""
        split, before = (signals.prefill, signals.decode), self._split
        self._split = split
        if split != before or signals.changing_role:
            self._steady_s = 0.0
            return False
        self._steady_s += signals.seconds
        return self._steady_s >= signals.answer_tokens * signals.itl_s

    def _prefill_short(self, signals: Signals) -> bool:
        """Return True if prefill workers are overloaded.

        Decode workers then compute prompts, which improves the TTFT and worsens the ITL.
        """
        busy = signals.rate_hz * self._profile_prefill_s(signals.prompt_tokens)
        return busy > MAX_UTILIZATION * signals.prefill

    def _explaining_factor(self, signals: Signals) -> float:
        """Return the prefill factor that explains the observed TTFT."""
        prompt = signals.prompt_tokens
        prefill_s = self._profile_prefill_s(prompt)
        limit_s = signals.ttft_s - self.first_token_s(prompt)

        def fits(factor: float) -> bool:
            service_s = factor * prefill_s
            return wait_s(signals.rate_hz, service_s, signals.prefill) + service_s <= limit_s

        return largest_fitting(fits, 1 / MAX_FACTOR, MAX_FACTOR)


def mean_context_tokens(load: Signals | ExpectedLoad) -> float:
    """Return the mean length of a sequence during its response, in tokens."""
    return load.prompt_tokens + load.answer_tokens / 2
