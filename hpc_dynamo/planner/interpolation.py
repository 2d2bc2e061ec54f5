"""A profile between its points: straight lines, and on beyond the outermost ones."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from hpc_dynamo.planner.profile import Point, Profile, What


class Line:
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
        left, right, share = _neighbours(self._xs, x)
        return _mix(self._ys[left], self._ys[right], share)


class Surface:
    """Through points (x, y, z) that lie in rows of one x each, of any places in y: a line along
    each row, and a line across the two rows that are next."""

    def __init__(self, points: Iterable[tuple[float, float, float]]) -> None:
        """Raises ValueError without points."""
        by_x = defaultdict[float, list[tuple[float, float]]](list)
        for x, y, z in points:
            by_x[x].append((y, z))
        if not by_x:
            raise ValueError("a surface needs a point")
        self._xs = sorted(by_x)
        self._rows = [Line(by_x[x]) for x in self._xs]

    def at(self, x: float, y: float) -> float:
        left, right, share = _neighbours(self._xs, x)
        return _mix(self._rows[left].at(y), self._rows[right].at(y), share)


def _neighbours(xs: Sequence[float], x: float) -> tuple[int, int, float]:
    """The two that `x` lies between, or is nearest to, and how far on the way it is."""
    if len(xs) == 1:
        return 0, 0, 0.0
    left = min(max(bisect_right(xs, x) - 1, 0), len(xs) - 2)
    return left, left + 1, (x - xs[left]) / (xs[left + 1] - xs[left])


def _mix(left: float, right: float, share: float) -> float:
    return (1 - share) * left + share * right


@dataclass(frozen=True)
class Error:
    """Of interpolated against measured times, as shares of the measured."""

    mean: float
    worst: float
    count: int


class Interpolated:
    """See performance.Performance."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    @property
    def start_s(self) -> float:
        return self.profile.start_s

    @property
    def most_sequences(self) -> int:
        return self.profile.most_sequences

    def prefill_s(self, prompt_tokens: float, cached_tokens: float = 0.0) -> float:
        share = cached_tokens / prompt_tokens if prompt_tokens else 0.0
        return max(self._prefill.at(prompt_tokens, share), 0.0)

    def itl_s(self, sequences: float, context_tokens: float) -> float:
        return max(self._itl.at(sequences, context_tokens), 0.0)

    def transfer_s(self, tokens: float) -> float:
        """0 where the profile is of workers that hand nothing over. The decode worker's first
        step is in what was measured and is taken out."""
        if self._moved is None:
            return 0.0
        return max(self._moved.at(tokens) - self.itl_s(1, tokens), 0.0)

    def error(self, what: What) -> Error | None:
        """At the points held out; None where there are none."""
        pairs = [(self._guess(p), p.seconds) for p in self.profile.of(what, held_out=True)]
        shares = [abs(guess - seen) / seen for guess, seen in pairs if seen]
        return Error(fmean(shares), max(shares), len(shares)) if shares else None

    def _guess(self, point: Point) -> float:
        spot = point.spot
        match spot.what:
            case What.ttft:
                return self.prefill_s(spot.prompt_tokens, point.cached_tokens)
            case What.itl:
                return self.itl_s(spot.sequences, point.context_tokens)
            case What.transfer:
                return self.transfer_s(spot.prompt_tokens) + self.itl_s(1, spot.prompt_tokens)

    @cached_property
    def _prefill(self) -> Surface:
        """Over the prompt and its cached share."""
        return Surface(
            (p.spot.prompt_tokens, p.cached_tokens / p.spot.prompt_tokens, p.seconds)
            for p in self.profile.of(What.ttft)
            if p.seconds is not None
        )

    @cached_property
    def _itl(self) -> Surface:
        """Over the sequences and their length."""
        return Surface(
            (p.spot.sequences, p.context_tokens, p.seconds)
            for p in self.profile.of(What.itl)
            if p.seconds is not None
        )

    @cached_property
    def _moved(self) -> Line | None:
        points = [
            (p.spot.prompt_tokens, p.seconds)
            for p in self.profile.of(What.transfer)
            if p.seconds is not None
        ]
        return Line(points) if points else None
