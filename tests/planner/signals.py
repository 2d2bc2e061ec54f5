"""What tests let a planner see."""

from typing import Any

from hpc_dynamo.planner.signals import Signals

INTERVAL_S = 30.0


class Linear:
    """A worker whose times are straight lines: no engine in particular."""

    start_s, most_sequences = 10.0, 256

    def __init__(self, slower: float = 1.0) -> None:
        self._slower = slower

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        return self._slower * (0.01 + (prompt_tokens - cached_tokens) * 8e-5)

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return self._slower * (0.007 + sequences * 2e-5 + sequences * context_tokens * 5e-8)

    def transfer_s(self, tokens: float) -> float:
        return tokens * 1e-6


def saw(number: int, prefill: int, decode: int, **more: Any) -> Signals:
    """Interval `number`; a calm one, where nothing else is said."""
    fields: dict[str, Any] = {"ttft_s": 0.6, "itl_s": 0.015, "running": 10.0, "kv_usage": 0.2}
    fields |= {"at": number * INTERVAL_S, "seconds": INTERVAL_S}
    return Signals(prefill=prefill, decode=decode, **(fields | more))
