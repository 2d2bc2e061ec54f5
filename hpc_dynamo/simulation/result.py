"""Results of a simulated job."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_dynamo.planner.signals import PlannerDecision

NAN = float("nan")


@dataclass(frozen=True)
class LatencyTargets:
    """Targets of one request: its TTFT and its mean ITL."""

    ttft_s: float
    itl_s: float


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Result of one request, in seconds of virtual time; `error` if it has no response."""

    at: float
    prompt_tokens: int
    response_tokens: int
    cached_tokens: int = 0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first_token_at - self.at

    @property
    def itl_s(self) -> float:
        return (self.ended_at - self.first_token_at) / max(1, self.response_tokens - 1)

    def within_targets(self, targets: LatencyTargets) -> bool:
        in_time = self.ttft_s <= targets.ttft_s and self.itl_s <= targets.itl_s
        return in_time and not self.error


@dataclass(frozen=True)
class SimulationResult:
    """Results of a job. `roles` has (time, prefill, decode) at each change."""

    results: Sequence[RequestResult]
    targets: LatencyTargets
    gpus: int
    seconds: float  # duration, to the last response
    role_changes: int
    failed_role_changes: int  # timed out
    roles: Sequence[tuple[float, int, int]]
    decisions: Sequence[PlannerDecision]

    @property
    def completed(self) -> list[RequestResult]:
        return [s for s in self.results if not s.error]

    @property
    def failed_requests(self) -> int:
        return len(self.results) - len(self.completed)

    @property
    def within_targets(self) -> int:
        return sum(s.within_targets(self.targets) for s in self.results)

    @property
    def goodput_hz(self) -> float:
        return self.within_targets / self.seconds if self.seconds else NAN

    @property
    def attainment(self) -> float:
        """Return the share of all requests within both targets."""
        return self.within_targets / len(self.results) if self.results else NAN

    @property
    def hit_rate(self) -> float:
        """Return the share of prompt tokens that were cached."""
        whole = self.completed
        return sum(s.cached_tokens for s in whole) / max(1, sum(s.prompt_tokens for s in whole))

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600

    def ttft_s(self) -> list[float]:
        return sorted(s.ttft_s for s in self.completed)

    def itl_s(self) -> list[float]:
        return sorted(s.itl_s for s in self.completed if s.response_tokens > 1)


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else NAN


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else NAN
