"""A profile between its points, and beyond them.

Between two neighbours a straight line. Below the least place that was measured the time there
holds: no step is quicker than its fixed part. Above the greatest the last line goes on where it
rises, else its end holds. So a time is never guessed lower than what was seen next to it.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean, linear_regression

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.performance import WorkerPerformance
from hpc_dynamo.planner.profile import (
    HINT,
    EngineProfile,
    InterpolationError,
    Measurement,
    Metric,
    load_profile,
)

Place = tuple[float, float, float]


class PiecewiseLine:
    """Through points (x, y). Several of one x count as their mean; a single one is a constant."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """Raises ValueError without points."""
        by_x = defaultdict[float, list[float]](list)
        for x, y in points:
            by_x[x].append(y)
        if not by_x:
            raise ValueError("a line needs a point")
        self._xs = sorted(by_x)
        self._ys = [fmean(by_x[x]) for x in self._xs]

    def at(self, x: float) -> float:
        return _between(self._xs, self._ys.__getitem__, x)


class PiecewiseSurface:
    """Through points (x, y, z) that lie in rows of one x each, of any places in y: a line along
    each row, and a line across the two rows that are next."""

    def __init__(self, points: Iterable[Place]) -> None:
        """Raises ValueError without points."""
        by_x = defaultdict[float, list[tuple[float, float]]](list)
        for x, y, z in points:
            by_x[x].append((y, z))
        if not by_x:
            raise ValueError("a surface needs a point")
        self._xs = sorted(by_x)
        self._rows = [PiecewiseLine(by_x[x]) for x in self._xs]

    def at(self, x: float, y: float) -> float:
        return _between(self._xs, lambda i: self._rows[i].at(y), x)


def remove_outliers(points: Iterable[Place]) -> list[Place]:
    """More is never done in less time: a point (x, y, seconds) that is slower than one of at least
    as much of both was disturbed, and is taken down to it."""
    all_points = list(points)
    return [
        (x, y, min(other for more_x, more_y, other in all_points if more_x >= x and more_y >= y))
        for x, y, _ in all_points
    ]


def _between(xs: Sequence[float], value: Callable[[int], float], x: float) -> float:
    """At `x`, from the values at `xs`, which ascend."""
    if x <= xs[0] or len(xs) == 1:
        return value(0)
    i = min(bisect_right(xs, x), len(xs) - 1)
    left, right = value(i - 1), value(i)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    if share > 1 and right < left:
        return right
    return (1 - share) * left + share * right


class ProfilePerformance:
    """See performance.Performance."""

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile

    @property
    def startup_s(self) -> float:
        return self.profile.startup_s

    @property
    def max_sequences(self) -> int:
        return self.profile.max_sequences

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        return self._prefill.at(prompt_tokens - cached_tokens, cached_tokens)

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return self._itl.at(sequences, context_tokens)

    def transfer_s(self, tokens: float) -> float:
        """0 where the profile is of workers that hand nothing over. Transfers are short beside
        what disturbs them, so this is one line that is nearest to all of them."""
        slope, start = self._moved
        return max(start + slope * tokens, 0.0)

    def error(self, what: Metric) -> InterpolationError | None:
        """At the points held out; None where there are none."""
        held_out = self.profile.of(what, held_out=True)
        shares = [abs(self._guess(p) / p.seconds - 1) for p in held_out if p.seconds]
        return InterpolationError(fmean(shares), max(shares), len(shares)) if shares else None

    def _guess(self, point: Measurement) -> float:
        spot = point.spot
        match spot.metric:
            case Metric.ttft:
                return self.prefill_s(spot.prompt_tokens, point.cached_tokens)
            case Metric.itl:
                return self.itl_s(spot.sequences, point.context_tokens)
            case Metric.transfer:
                return self.transfer_s(spot.prompt_tokens) + self.itl_s(1, spot.prompt_tokens)

    @cached_property
    def _prefill(self) -> PiecewiseSurface:
        """Over the tokens that are computed, and those cached before them: along both, time is
        nearly straight."""
        places = (
            (p.spot.prompt_tokens - p.cached_tokens, p.cached_tokens, p.seconds)
            for p in self.profile.of(Metric.ttft)
            if p.seconds
        )
        return PiecewiseSurface(remove_outliers(places))

    @cached_property
    def _itl(self) -> PiecewiseSurface:
        """Over the sequences and their length."""
        places = (
            (p.spot.sequences, p.context_tokens, p.seconds)
            for p in self.profile.of(Metric.itl)
            if p.seconds
        )
        return PiecewiseSurface(remove_outliers(places))

    @cached_property
    def _moved(self) -> tuple[float, float]:
        """Seconds a token, and for none. The decode worker's first step is in what was measured
        and is taken out."""
        times = {
            float(p.spot.prompt_tokens): p.seconds - self.itl_s(1, p.spot.prompt_tokens)
            for p in self.profile.of(Metric.transfer)
            if p.seconds
        }
        if len(times) < 2:
            return 0.0, sum(times.values())
        slope, start = linear_regression(list(times), list(times.values()))
        return (slope, start) if slope > 0 else (0.0, fmean(times.values()))


def load_performance(path: str | Path) -> WorkerPerformance:
    """What `planner.profile` names. Raises ConfigError where it cannot be used."""
    if not str(path):
        raise ConfigError("planner.profile is not set", hint=HINT)
    try:
        return ProfilePerformance(load_profile(Path(path)))
    except ConfigError as e:
        raise ConfigError(f"planner.profile={e.message}", hint=e.hint) from e
