"""Cost of a KV transfer from a prefill to a decode worker, learned from past transfers.

The cost is the number of prompt tokens that a worker computes in the same time. It can therefore be
compared with prompts on any model and network.
"""

SMOOTHING = 0.1  # weight of the newest observation in both running means


class TransferCost:
    """Running means of the time per prefill token and the time per transfer."""

    def __init__(self, tokens: int | None) -> None:
        """`tokens` is the configured cost; None to measure it."""
        self._configured = tokens
        self._token_s, self._transfer_s = 0.0, 0.0

    @property
    def tokens(self) -> float:
        """Return the cost in prompt tokens; 0 until it is measured, which favours a transfer."""
        if self._configured is not None:
            return self._configured
        return self._transfer_s / self._token_s if self._token_s else 0.0

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Add the time that a prefill worker took for these tokens, queued ones included."""
        if tokens:
            self._token_s = _mean(self._token_s, seconds / tokens)

    def observe_transfer(self, seconds: float) -> None:
        """Add the time from the end of a prefill to the first token of the decode worker."""
        self._transfer_s = _mean(self._transfer_s, seconds)


def _mean(mean: float, value: float) -> float:
    return mean + SMOOTHING * (value - mean) if mean else value
