"""Performance of one worker, from a profile or from a timing model."""

from typing import Protocol


class WorkerPerformance(Protocol):
    """Times of one worker. Token counts may be means, so they are floats."""

    @property
    def startup_s(self) -> float:
        """Return the time from the start of the engine to its first served token."""

    @property
    def max_sequences(self) -> int:
        """Return the maximum number of sequences decoded at once."""

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        """Return the prefill time of a prompt on an idle worker."""

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        """Return the time between tokens for this many sequences of this mean length."""

    def transfer_s(self, tokens: float) -> float:
        """Return the transfer time of the KV cache of this many tokens to another worker."""
