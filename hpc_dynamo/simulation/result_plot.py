"""Plots load, roles and latencies of a simulated job over time."""

from collections.abc import Callable, Iterator, Sequence

from hpc_dynamo.config import TopologyKind
from hpc_dynamo.plotting import Curve, Panel, Style
from hpc_dynamo.simulation.result import RequestResult, SimulationResult, mean

POINTS = 60  # approximate number of points of a curve
MIN_POINT_S = 5.0  # shorter averages would be noisy


def panels(outcome: SimulationResult, kind: TopologyKind) -> Iterator[Panel]:
    """Yield the panels for plotting.draw."""
    whole, targets = outcome.completed, outcome.targets
    point_s = max(MIN_POINT_S, outcome.seconds / POINTS)
    points = 1 + int(outcome.seconds / point_s)
    arrived = _count(outcome.results, lambda s: s.at, point_s, points)
    good = _count(
        [s for s in whole if s.within_targets(targets)], lambda s: s.ended_at, point_s, points
    )
    at = [i * point_s / 60 for i in range(len(arrived))]
    yield Panel(
        "requests/s", [Curve("arrived", at, arrived), Curve("within both targets", at, good)]
    )
    if kind is TopologyKind.disaggregated:
        yield Panel("workers", list(roles(outcome)))
    ttft = _means(whole, lambda s: s.first_token_at, lambda s: s.ttft_s, point_s, points)
    yield Panel("TTFT s, mean", [Curve("TTFT", at, ttft)], target=targets.ttft_s)
    answers = [s for s in whole if s.response_tokens > 1]
    itl = _means(answers, lambda s: s.ended_at, lambda s: 1000 * s.itl_s, point_s, points)
    itl_ms = [Curve("ITL", at, itl)]
    yield Panel("ITL ms, mean", itl_ms, "minutes", target=1000 * targets.itl_s)


def roles(outcome: SimulationResult) -> Iterator[Curve]:
    """Yield the number of workers per role over time in minutes."""
    last_counts = {at: counts for at, *counts in outcome.roles}  # the last of result moment
    minutes = [at / 60 for at in (*last_counts, outcome.seconds)]
    last = list(last_counts.values())[-1:]
    for i, name in enumerate(("prefill", "decode")):
        yield Curve(name, minutes, [c[i] for c in (*last_counts.values(), *last)], Style.steps)


def _count(
    results: Sequence[RequestResult],
    when: Callable[[RequestResult], float],
    point_s: float,
    points: int,
) -> list[float]:
    counts = [0.0] * points
    for result in results:
        counts[min(points - 1, int(when(result) / point_s))] += 1 / point_s
    return counts


def _means(
    results: Sequence[RequestResult],
    when: Callable[[RequestResult], float],
    value: Callable[[RequestResult], float],
    point_s: float,
    points: int,
) -> list[float]:
    """Return the mean per point; nan, a gap in the curve, without values."""
    values: list[list[float]] = [[] for _ in range(points)]
    for result in results:
        values[min(points - 1, int(when(result) / point_s))].append(value(result))
    return [mean(part) for part in values]
