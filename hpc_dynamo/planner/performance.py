"""What one worker can do, as a planner asks it: a profile's interpolation, or a timing model."""

from typing import Protocol


class WorkerPerformance(Protocol):
    """Of one worker. Token counts may be means, so they are floats."""

    @property
    def startup_s(self) -> float:
        """From the start of the engine to its first served token."""

    @property
    def max_sequences(self) -> int:
        """That it decodes at a time."""

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        """Time in which one prompt, of which `cached_tokens` are in the prefix cache, is computed
        by a worker that has nothing else to do."""

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        """Time between tokens where so many sequences of such a mean length are decoded at once."""

    def transfer_s(self, tokens: float) -> float:
        """Time in which KV cache of so many tokens goes from one worker to another."""
