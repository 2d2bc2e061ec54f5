"""What a hand-over from prefill to decode worker costs, learned from those that were made.

Counted in prompt tokens that a worker computes in the same time: so it can be compared with
prompts, whatever model and network there are.
"""

SMOOTHING = 0.1  # of the newest observation, in both running means


class TransferCost:
    """Two running means; nothing is known before both have been seen."""

    def __init__(self, tokens: int | None) -> None:
        """`tokens`: the cost where a person knows it better."""
        self._given = tokens
        self._token_s, self._handover_s = 0.0, 0.0

    @property
    def tokens(self) -> float:
        """0 until it was measured: then a prompt is split when in doubt."""
        if self._given is not None:
            return self._given
        return self._handover_s / self._token_s if self._token_s else 0.0

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """A prefill worker computed so many tokens, those before this prompt included."""
        if tokens:
            self._token_s = _mean(self._token_s, seconds / tokens)

    def observe_transfer(self, seconds: float) -> None:
        """From the end of a prefill to the first token on the decode worker."""
        self._handover_s = _mean(self._handover_s, seconds)


def _mean(mean: float, value: float) -> float:
    return mean + SMOOTHING * (value - mean) if mean else value
