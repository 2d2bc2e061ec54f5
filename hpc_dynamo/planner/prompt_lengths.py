"""Prompt lengths from the engines' own counters, for a planner whose head has no tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass

from hpc_dynamo.messages import WorkerLoad


@dataclass(frozen=True)
class ComputedPrompts:
    """Prompts that engines computed in an interval; zeros if they report none."""

    tokens: float = 0.0  # mean length
    hit_rate: float = 0.0  # share of their tokens that were cached

    @property
    def computed(self) -> float:
        """Return the mean number of tokens that a prefill worker computes for one prompt."""
        return self.tokens * (1 - self.hit_rate)


class PromptLengths:
    """Differences of each worker's counters between two calls."""

    def __init__(self) -> None:
        self._before = dict[int, WorkerLoad]()

    def take(self, loads: Iterable[WorkerLoad]) -> ComputedPrompts:
        """Return the counts since the last call.

        A new worker, or one whose counters were reset, counts from the next call on.
        """
        now = {load.rank: load for load in loads}
        pairs = [(new, old) for rank, new in now.items() if (old := self._before.get(rank))]
        self._before = now
        comparable = [(new, old) for new, old in pairs if new.ttft.count >= old.ttft.count]
        count = sum(new.ttft.count - old.ttft.count for new, old in comparable)
        tokens = sum(new.prompt_tokens - old.prompt_tokens for new, old in comparable)
        queries = sum(new.prefix_queries - old.prefix_queries for new, old in comparable)
        hits = sum(new.prefix_hits - old.prefix_hits for new, old in comparable)
        if count <= 0 or tokens <= 0:
            return ComputedPrompts()
        return ComputedPrompts(
            tokens / count, min(max(hits / queries, 0.0), 1.0) if queries > 0 else 0.0
        )
