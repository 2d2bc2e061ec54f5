"""Traffic of the current planner interval."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class MeanAccumulator:
    """A running mean; 0 without values."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass
class IntervalTotals:
    """Totals of one interval. A request that is retried on another worker counts once.

    Prompt lengths are of tokenized prompts. Response lengths are of streams and of responses with
    usage. TTFT and ITL are of streams.
    """

    started_at: float
    seconds: float = 0.0
    requests: int = 0  # arrived
    prompt_tokens: MeanAccumulator = field(default_factory=MeanAccumulator)  # arrived
    answer_tokens: MeanAccumulator = field(default_factory=MeanAccumulator)  # finished
    ttft_s: MeanAccumulator = field(default_factory=MeanAccumulator)  # since arrival
    itl_s: MeanAccumulator = field(default_factory=MeanAccumulator)
    placed_tokens: int = 0  # tokens of the prompts sent to a worker
    cached_tokens: int = 0  # those cached on that worker

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.placed_tokens if self.placed_tokens else 0.0


class IntervalStats:
    """Collects the totals of consecutive intervals in `current`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.current = IntervalTotals(clock())

    def add_request(self, tokens: int) -> None:
        self.current.requests += 1
        if tokens:
            self.current.prompt_tokens.add(tokens)

    def add_placement(self, tokens: int, cached: int) -> None:
        self.current.placed_tokens += tokens
        self.current.cached_tokens += min(cached, tokens)

    def add_response(self, tokens: int, itl_s: float) -> None:
        """Add a finished response; values of 0 are unknown."""
        if tokens:
            self.current.answer_tokens.add(tokens)
        if itl_s:
            self.current.itl_s.add(itl_s)

    def take(self) -> IntervalTotals:
        """Return the totals since the last call and start the next interval."""
        taken, at = self.current, self._clock()
        taken.seconds = at - taken.started_at
        self.current = IntervalTotals(at)
        return taken
