"""What went through the router since somebody last looked: for whoever plans by it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class MeanAccumulator:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """0 where nothing was added."""
        return self.total / self.count if self.count else 0.0


@dataclass
class IntervalTotals:
    """Of so many `seconds`. A request that is sent to another worker came once.

    Lengths of prompts and answers are those that are known: of prompts that were tokenized, and
    of answers that were streamed or say what they used. TTFT and ITL are of streams.
    """

    started_at: float
    seconds: float = 0.0
    requests: int = 0  # that came
    prompt_tokens: MeanAccumulator = field(default_factory=MeanAccumulator)  # of those that came
    answer_tokens: MeanAccumulator = field(default_factory=MeanAccumulator)  # of those that ended
    ttft_s: MeanAccumulator = field(
        default_factory=MeanAccumulator
    )  # from arrival, the wait in line included
    itl_s: MeanAccumulator = field(default_factory=MeanAccumulator)
    placed_tokens: int = 0  # of prompts that were given to a worker
    cached_tokens: int = 0  # of them, those that it had

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.placed_tokens if self.placed_tokens else 0.0


class IntervalStats:
    """Counts one interval after the other; who counts writes `now`."""

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
        """An answer of so many tokens; 0: not known."""
        if tokens:
            self.current.answer_tokens.add(tokens)
        if itl_s:
            self.current.itl_s.add(itl_s)

    def take(self) -> IntervalTotals:
        """What there was since the last call, or the start."""
        taken, at = self.current, self._clock()
        taken.seconds = at - taken.started_at
        self.current = IntervalTotals(at)
        return taken
