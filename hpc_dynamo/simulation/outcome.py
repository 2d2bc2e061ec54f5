"""What a simulated run showed, in figures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_dynamo.planner.signals import Decision

NAN = float("nan")


@dataclass(frozen=True)
class Targets:
    """Both are of one request: its TTFT, and the mean time between its tokens."""

    ttft_s: float
    itl_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One request's course, in seconds of virtual time. `lost` says why it has no answer."""

    at: float
    prompt: int
    answer: int
    cached: int = 0
    first: float = 0.0
    end: float = 0.0
    lost: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first - self.at

    @property
    def itl_s(self) -> float:
        return (self.end - self.first) / max(1, self.answer - 1)

    def good(self, targets: Targets) -> bool:
        in_time = self.ttft_s <= targets.ttft_s and self.itl_s <= targets.itl_s
        return in_time and not self.lost


@dataclass(frozen=True)
class Outcome:
    """`roles` are (time, prefill, decode) whenever they changed; `decisions` the planner's."""

    seen: Sequence[Seen]
    targets: Targets
    gpus: int
    seconds: float  # to the last answer
    flips: int
    failed: int  # changes of role that did not come about
    roles: Sequence[tuple[float, int, int]]
    decisions: Sequence[Decision]

    @property
    def whole(self) -> list[Seen]:
        return [s for s in self.seen if not s.lost]

    @property
    def lost(self) -> int:
        return len(self.seen) - len(self.whole)

    @property
    def good(self) -> int:
        return sum(s.good(self.targets) for s in self.seen)

    @property
    def goodput_hz(self) -> float:
        return self.good / self.seconds if self.seconds else NAN

    @property
    def attainment(self) -> float:
        """Share of all requests that kept both targets."""
        return self.good / len(self.seen) if self.seen else NAN

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that no worker computed."""
        whole = self.whole
        return sum(s.cached for s in whole) / max(1, sum(s.prompt for s in whole))

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600

    def ttft_s(self) -> list[float]:
        return sorted(s.ttft_s for s in self.whole)

    def itl_s(self) -> list[float]:
        return sorted(s.itl_s for s in self.whole if s.answer > 1)


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else NAN


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else NAN
