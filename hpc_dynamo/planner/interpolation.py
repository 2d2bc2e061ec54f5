"""Interpolates and extrapolates the measurements of a profile.

Between two points the time is linear. Below the first point its time is used, since no step is
faster than its fixed part. Above the last point the last line continues if it rises; otherwise its
end is used. An estimate is therefore never below the nearest measurement.
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

Point3 = tuple[float, float, float]


class PiecewiseLine:
    """Piecewise linear function through points (x, y); points of equal x are averaged."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """`points` must not be empty; otherwise ValueError is raised."""
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
    """Function through points (x, y, z), grouped in rows of equal x.

    It is linear along each row, and between the two nearest rows.
    """

    def __init__(self, points: Iterable[Point3]) -> None:
        """`points` must not be empty; otherwise ValueError is raised."""
        by_x = defaultdict[float, list[tuple[float, float]]](list)
        for x, y, z in points:
            by_x[x].append((y, z))
        if not by_x:
            raise ValueError("a surface needs a point")
        self._xs = sorted(by_x)
        self._rows = [PiecewiseLine(by_x[x]) for x in self._xs]

    def at(self, x: float, y: float) -> float:
        return _between(self._xs, lambda i: self._rows[i].at(y), x)


def remove_outliers(points: Iterable[Point3]) -> list[Point3]:
    """Lower each time (x, y, seconds) to that of any point with at least the same x and y.

    More work never takes less time, so the higher one was disturbed by other load.
    """
    all_points = list(points)
    return [
        (x, y, min(other for more_x, more_y, other in all_points if more_x >= x and more_y >= y))
        for x, y, _ in all_points
    ]


def _between(xs: Sequence[float], value: Callable[[int], float], x: float) -> float:
    """Return the value at `x` from the values at the ascending `xs`."""
    if x <= xs[0] or len(xs) == 1:
        return value(0)
    i = min(bisect_right(xs, x), len(xs) - 1)
    left, right = value(i - 1), value(i)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    if share > 1 and right < left:
        return right
    return (1 - share) * left + share * right


class ProfilePerformance:
    """The WorkerPerformance of a profile."""

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
        """Return the time of the least-squares line through all transfers; 0 without transfers.

        A single line is used because transfers are short compared with disturbances.
        """
        slope, start = self._transfer_line
        return max(start + slope * tokens, 0.0)

    def error(self, metric: Metric) -> InterpolationError | None:
        """Return the error at the held-out points, None without such points."""
        held_out = self.profile.of(metric, held_out=True)
        errors = [abs(self._estimate(p) / p.seconds - 1) for p in held_out if p.seconds]
        return InterpolationError(fmean(errors), max(errors), len(errors)) if errors else None

    def _estimate(self, measurement: Measurement) -> float:
        point = measurement.point
        match point.metric:
            case Metric.ttft:
                return self.prefill_s(point.prompt_tokens, measurement.cached_tokens)
            case Metric.itl:
                return self.itl_s(point.sequences, measurement.context_tokens)
            case Metric.transfer:
                return self.transfer_s(point.prompt_tokens) + self.itl_s(1, point.prompt_tokens)

    @cached_property
    def _prefill(self) -> PiecewiseSurface:
        """Return the surface over computed and cached tokens; both are nearly linear."""
        return self._surface(
            Metric.ttft, lambda p: (p.point.prompt_tokens - p.cached_tokens, p.cached_tokens)
        )

    @cached_property
    def _itl(self) -> PiecewiseSurface:
        """Return the surface over sequences and context tokens."""
        return self._surface(Metric.itl, lambda p: (p.point.sequences, p.context_tokens))

    def _surface(
        self, metric: Metric, xy: Callable[[Measurement], tuple[float, float]]
    ) -> PiecewiseSurface:
        points = ((*xy(p), p.seconds) for p in self.profile.of(metric) if p.seconds)
        return PiecewiseSurface(remove_outliers(points))

    @cached_property
    def _transfer_line(self) -> tuple[float, float]:
        """Return (seconds per token, fixed seconds), without the decode worker's first step."""
        times = {
            float(p.point.prompt_tokens): p.seconds - self.itl_s(1, p.point.prompt_tokens)
            for p in self.profile.of(Metric.transfer)
            if p.seconds
        }
        if len(times) < 2:
            return 0.0, sum(times.values())
        slope, start = linear_regression(list(times), list(times.values()))
        return (slope, start) if slope > 0 else (0.0, fmean(times.values()))


def load_performance(path: str | Path) -> WorkerPerformance:
    """Load the profile at `planner.profile`. Raises ConfigError if it cannot be used."""
    if not str(path):
        raise ConfigError("planner.profile is not set", hint=HINT)
    try:
        return ProfilePerformance(load_profile(Path(path)))
    except ConfigError as e:
        raise ConfigError(f"planner.profile={e.message}", hint=e.hint) from e
