"""Signals and workers for the planner's tests."""

from typing import Any

from hpc_dynamo.planner.queueing import wait_s
from hpc_dynamo.planner.signals import ExpectedLoad, Signals

INTERVAL_S = 30.0


class Linear:
    """A worker with linear times, of no particular engine."""

    startup_s, max_sequences = 10.0, 256

    def __init__(self, slower: float = 1.0) -> None:
        self._slower = slower

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        return self._slower * (0.01 + (prompt_tokens - cached_tokens) * 8e-5)

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return self._slower * (0.007 + sequences * 2e-5 + sequences * context_tokens * 5e-8)

    def transfer_s(self, tokens: float) -> float:
        return tokens * 1e-6


def saw(number: int, prefill: int, decode: int, **more: Any) -> Signals:
    """Return the signals of interval `number`, calm by default."""
    fields: dict[str, Any] = {"ttft_s": 0.6, "itl_s": 0.015, "running": 10.0, "kv_usage": 0.2}
    fields |= {"at": number * INTERVAL_S, "seconds": INTERVAL_S}
    return Signals(prefill=prefill, decode=decode, **(fields | more))


def served(load: ExpectedLoad, worker: Linear, split: tuple[int, int], **more: Any) -> Signals:
    """Return the signals of workers that keep up with a load; the TTFT is at most a minute.

    `hit_rate` of the prompts may be given.
    """
    prefill, decode = split
    prompt, answer = load.prompt_tokens, load.answer_tokens
    service_s = worker.prefill_s(prompt, more.get("hit_rate", 0.0) * prompt)
    ttft_s = wait_s(load.rate_hz, service_s, prefill) + service_s
    ttft_s += worker.transfer_s(prompt) + worker.itl_s(1, prompt)
    length, running = prompt + answer / 2, 1.0
    for _ in range(200):  # Little's law
        running = min(load.rate_hz * answer / decode * worker.itl_s(running, length), 200.0)
    fields: dict[str, Any] = {"requests": round(load.rate_hz * INTERVAL_S)}
    fields |= {"prompt_tokens": prompt, "answer_tokens": answer, "ttft_s": min(ttft_s, 60.0)}
    fields |= {"itl_s": worker.itl_s(running, length), "running": running}
    return saw(0, prefill, decode, **(fields | {"kv_usage": running / 200} | more))
