"""Between the points of a profile, and beyond them."""

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
def test_a_line_is_exact_where_it_was_measured(points: dict[int, float]) -> None:
    line = PiecewiseLine(points.items())
    assert [line.at(x) for x in points] == list(points.values())


@given(lines(), NUMBERS)
def test_between_two_points_a_line_stays_between_them(
    points: dict[int, float], where: float
) -> None:
    least, most = min(points), max(points)
    x = least + (most - least) * where / 1e4
    below = max(p for p in points if p <= x)
    above = min((p for p in points if p >= x), default=below)
    ends = sorted((points[below], points[above]))
    assert ends[0] - 1e-6 <= PiecewiseLine(points.items()).at(x) <= ends[1] + 1e-6


@given(lines(), NUMBERS, NUMBERS)
def test_a_line_rises_everywhere_where_its_points_do(
    points: dict[int, float], a: float, b: float
) -> None:
    rising = PiecewiseLine(zip(points, sorted(points.values()), strict=True))
    low, high = sorted((2 * a, 2 * b))
    assert rising.at(low) <= rising.at(high) + 1e-6


@given(lines(), st.floats(0.001, 1e4))
def test_beyond_its_ends_a_line_is_never_below_them(
    points: dict[int, float], beyond: float
) -> None:
    line, xs = PiecewiseLine(points.items()), list(points)
    assert line.at(xs[0] - beyond) == points[xs[0]]
    assert line.at(xs[-1] + beyond) >= points[xs[-1]] - 1e-6


def test_beyond_the_greatest_place_the_last_line_goes_on_where_it_rises() -> None:
    assert PiecewiseLine([(0, 5), (1, 1), (3, 2)]).at(7) == 4
    assert PiecewiseLine([(0, 1), (1, 5), (3, 2)]).at(7) == 2
    assert PiecewiseLine([(3, 2)]).at(7) == 2


def test_what_was_measured_twice_counts_as_its_mean() -> None:
    assert PiecewiseLine([(1, 2), (1, 4)]).at(1) == 3


@given(grids())
def test_a_surface_is_exact_where_it_was_measured(points: list[tuple[int, int, float]]) -> None:
    surface = PiecewiseSurface(points)
    assert [surface.at(x, y) for x, y, _ in points] == [z for *_, z in points]


@given(grids(), NUMBERS, NUMBERS, NUMBERS)
def test_a_surface_rises_where_its_points_do(
    points: list[tuple[int, int, float]], a: float, b: float, y: float
) -> None:
    rising = PiecewiseSurface((x, y, x + 2 * y) for x, y, _ in points)
    low, high = sorted((a, b))
    assert rising.at(low, y) <= rising.at(high, y) + 1e-6
    assert rising.at(y, low) <= rising.at(y, high) + 1e-6


@given(grids())
def test_what_was_slower_than_more_work_was_disturbed(points: list[tuple[int, int, float]]) -> None:
    calm = remove_outliers(points)
    assert all(after <= before for (*_, before), (*_, after) in zip(points, calm, strict=True))
    for x, y, seconds in calm:
        assert all(z >= seconds for more_x, more_y, z in calm if more_x >= x and more_y >= y)


def test_what_rises_is_left_as_it_is() -> None:
    rising = [(1.0, 1.0, 1.0), (1.0, 2.0, 2.0), (2.0, 1.0, 3.0), (2.0, 2.0, 3.0)]
    assert remove_outliers(rising) == rising
    assert remove_outliers([(1, 1, 5), (1, 2, 2)]) == [(1, 1, 2), (1, 2, 2)]


def test_without_points_there_is_no_line() -> None:
    with pytest.raises(ValueError, match="needs a point"):
        PiecewiseLine([])
    with pytest.raises(ValueError, match="needs a point"):
        PiecewiseSurface([])


@pytest.mark.parametrize(("timing", "off"), [("h100-8b", 0.03), ("cpu-135m", 0.001)])
def test_held_out_points_are_met_where_nothing_is_noisy(timing: str, off: float) -> None:
    """What is left is the curve that a straight line does not follow."""
    worker = ProfilePerformance(modelled.measured(PROFILES[timing], 1e-9))
    for what in Metric:
        error = worker.error(what)
        assert error is not None
        assert error.worst < off
        assert error.mean <= error.worst


def test_every_measured_point_is_given_back() -> None:
    profile = modelled.measured(PROFILES["h100-8b"], 1e-9)
    worker = ProfilePerformance(profile)
    for p in profile.of(Metric.ttft):
        assert worker.prefill_s(p.spot.prompt_tokens, p.cached_tokens) == pytest.approx(p.seconds)
    for p in profile.of(Metric.itl):
        assert worker.itl_s(p.spot.sequences, p.context_tokens) == pytest.approx(p.seconds)
    assert worker.startup_s == 30.0
    assert worker.max_sequences == 64


def _transfers(times: dict[int, float]) -> ProfilePerformance:
    itl = OperatingPoint(metric=Metric.itl, prompt_tokens=1)
    spots = {n: OperatingPoint(metric=Metric.transfer, prompt_tokens=n) for n in times}
    points = [Measurement(spot=itl, seconds=0.5, context_tokens=1)]
    points += [Measurement(spot=spots[n], seconds=seconds) for n, seconds in times.items()]
    return ProfilePerformance(modelled.profile(tuple(points)))


def test_a_transfer_is_what_a_decode_worker_takes_beyond_a_step() -> None:
    worker = _transfers({1000: 1.5, 2000: 2.5})
    assert worker.transfer_s(3000) == pytest.approx(3.0)
    assert worker.transfer_s(0) == 0


def test_transfers_that_noise_lets_fall_take_their_mean() -> None:
    assert _transfers({1000: 2.5, 2000: 1.5}).transfer_s(5000) == pytest.approx(1.5)
    assert _transfers({1000: 2.5}).transfer_s(5000) == pytest.approx(2.0)


def test_workers_that_hand_nothing_over_take_no_time_for_it() -> None:
    assert _transfers({}).transfer_s(5000) == 0
    assert _transfers({}).error(Metric.transfer) is None
