"""Interpolation and extrapolation of profiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.planner.interpolation import (
    PiecewiseLine,
    PiecewiseSurface,
    ProfilePerformance,
    remove_outliers,
)
from hpc_dynamo.planner.profile import Measurement, Metric, OperatingPoint
from hpc_dynamo.timing_model import PROFILES
from tests.unit.planner import modelled

NUMBERS = st.floats(0, 1e4, allow_nan=False, width=32)
PLACES = st.lists(st.integers(0, 10_000), min_size=1, max_size=8, unique=True).map(sorted)


@st.composite
def lines(draw: st.DrawFn) -> dict[int, float]:
    xs = draw(PLACES)
    return dict(zip(xs, draw(st.lists(NUMBERS, min_size=len(xs), max_size=len(xs))), strict=True))


@st.composite
def grids(draw: st.DrawFn) -> list[tuple[int, int, float]]:
    xs, ys = draw(PLACES), draw(PLACES)
    count = len(xs) * len(ys)
    zs = iter(draw(st.lists(NUMBERS, min_size=count, max_size=count)))
    return [(x, y, next(zs)) for x in xs for y in ys]


@given(lines())
def test_line_is_exact_at_its_points(points: dict[int, float]) -> None:
    line = PiecewiseLine(points.items())
    assert [line.at(x) for x in points] == list(points.values())


@given(lines(), NUMBERS)
def test_line_stays_between_neighbouring_points(points: dict[int, float], where: float) -> None:
    least, most = min(points), max(points)
    x = least + (most - least) * where / 1e4
    below = max(p for p in points if p <= x)
    above = min((p for p in points if p >= x), default=below)
    ends = sorted((points[below], points[above]))
    assert ends[0] - 1e-6 <= PiecewiseLine(points.items()).at(x) <= ends[1] + 1e-6


@given(lines(), NUMBERS, NUMBERS)
def test_line_with_rising_points_rises_everywhere(
    points: dict[int, float], a: float, b: float
) -> None:
    rising = PiecewiseLine(zip(points, sorted(points.values()), strict=True))
    low, high = sorted((2 * a, 2 * b))
    assert rising.at(low) <= rising.at(high) + 1e-6


@given(lines(), st.floats(0.001, 1e4))
def test_line_beyond_its_ends_is_never_below_them(points: dict[int, float], beyond: float) -> None:
    line, xs = PiecewiseLine(points.items()), list(points)
    assert line.at(xs[0] - beyond) == points[xs[0]]
    assert line.at(xs[-1] + beyond) >= points[xs[-1]] - 1e-6


def test_line_beyond_its_last_point_continues_if_it_rises() -> None:
    assert PiecewiseLine([(0, 5), (1, 1), (3, 2)]).at(7) == 4
    assert PiecewiseLine([(0, 1), (1, 5), (3, 2)]).at(7) == 2
    assert PiecewiseLine([(3, 2)]).at(7) == 2


def test_points_of_equal_x_are_averaged() -> None:
    assert PiecewiseLine([(1, 2), (1, 4)]).at(1) == 3


@given(grids())
def test_surface_is_exact_at_its_points(points: list[tuple[int, int, float]]) -> None:
    surface = PiecewiseSurface(points)
    assert [surface.at(x, y) for x, y, _ in points] == [z for *_, z in points]


@given(grids(), NUMBERS, NUMBERS, NUMBERS)
def test_surface_with_rising_points_rises(
    points: list[tuple[int, int, float]], a: float, b: float, y: float
) -> None:
    rising = PiecewiseSurface((x, y, x + 2 * y) for x, y, _ in points)
    low, high = sorted((a, b))
    assert rising.at(low, y) <= rising.at(high, y) + 1e-6
    assert rising.at(y, low) <= rising.at(y, high) + 1e-6


@given(grids())
def test_time_slower_than_that_of_more_work_is_lowered(
    points: list[tuple[int, int, float]],
) -> None:
    calm = remove_outliers(points)
    assert all(after <= before for (*_, before), (*_, after) in zip(points, calm, strict=True))
    for x, y, seconds in calm:
        assert all(z >= seconds for more_x, more_y, z in calm if more_x >= x and more_y >= y)


def test_rising_times_are_kept() -> None:
    rising = [(1.0, 1.0, 1.0), (1.0, 2.0, 2.0), (2.0, 1.0, 3.0), (2.0, 2.0, 3.0)]
    assert remove_outliers(rising) == rising
    assert remove_outliers([(1, 1, 5), (1, 2, 2)]) == [(1, 1, 2), (1, 2, 2)]


def test_line_without_points_raises() -> None:
    with pytest.raises(ValueError, match="needs a point"):
        PiecewiseLine([])
    with pytest.raises(ValueError, match="needs a point"):
        PiecewiseSurface([])


@pytest.mark.parametrize(("timing", "off"), [("h100-8b", 0.03), ("cpu-135m", 0.001)])
def test_held_out_points_without_noise_are_predicted(timing: str, off: float) -> None:
    """The remaining error is the curvature of the times."""
    worker = ProfilePerformance(modelled.measured(PROFILES[timing], 1e-9))
    for what in Metric:
        error = worker.error(what)
        assert error is not None
        assert error.worst < off
        assert error.mean <= error.worst


def test_every_measured_point_is_reproduced() -> None:
    profile = modelled.measured(PROFILES["h100-8b"], 1e-9)
    worker = ProfilePerformance(profile)
    for p in profile.of(Metric.ttft):
        assert worker.prefill_s(p.point.prompt_tokens, p.cached_tokens) == pytest.approx(p.seconds)
    for p in profile.of(Metric.itl):
        assert worker.itl_s(p.point.sequences, p.context_tokens) == pytest.approx(p.seconds)
    assert worker.startup_s == 30.0
    assert worker.max_sequences == 64


def _transfers(times: dict[int, float]) -> ProfilePerformance:
    itl = OperatingPoint(metric=Metric.itl, prompt_tokens=1)
    spots = {n: OperatingPoint(metric=Metric.transfer, prompt_tokens=n) for n in times}
    points = [Measurement(point=itl, seconds=0.5, context_tokens=1)]
    points += [Measurement(point=spots[n], seconds=seconds) for n, seconds in times.items()]
    return ProfilePerformance(modelled.profile(tuple(points)))


def test_transfer_time_excludes_one_decode_step() -> None:
    worker = _transfers({1000: 1.5, 2000: 2.5})
    assert worker.transfer_s(3000) == pytest.approx(3.0)
    assert worker.transfer_s(0) == 0


def test_falling_transfer_times_are_averaged() -> None:
    assert _transfers({1000: 2.5, 2000: 1.5}).transfer_s(5000) == pytest.approx(1.5)
    assert _transfers({1000: 2.5}).transfer_s(5000) == pytest.approx(2.0)


def test_profile_without_transfers_has_no_transfer_time() -> None:
    assert _transfers({}).transfer_s(5000) == 0
    assert _transfers({}).error(Metric.transfer) is None
