"""Load, roles and latencies of a simulated run over time."""

from collections.abc import Callable, Iterator, Sequence

from hpc_dynamo.config import TopologyKind
from hpc_dynamo.plotting import Curve, Panel, Style
from hpc_dynamo.simulation.result import RequestResult, SimulationResult, mean

POINTS = 60  # of a curve, about
LEAST_S = 5.0  # minimum duration of a point: shorter ones would draw noise


def panels(outcome: SimulationResult, kind: TopologyKind) -> Iterator[Panel]:
    """For draw.draw."""
    whole, targets = outcome.completed, outcome.targets
    wide_s = max(LEAST_S, outcome.seconds / POINTS)
    points = 1 + int(outcome.seconds / wide_s)
    came = _count(outcome.results, lambda s: s.at, wide_s, points)
    good = _count(
        [s for s in whole if s.within_targets(targets)], lambda s: s.ended_at, wide_s, points
    )
    at = [i * wide_s / 60 for i in range(len(came))]
    yield Panel("requests/s", [Curve("came", at, came), Curve("in both targets", at, good)])
    if kind is TopologyKind.disaggregated:
        yield Panel("workers", list(roles(outcome)))
    ttft = _means(whole, lambda s: s.first_token_at, lambda s: s.ttft_s, wide_s, points)
    yield Panel("TTFT s, mean", [Curve("TTFT", at, ttft)], target=targets.ttft_s)
    answers = [s for s in whole if s.response_tokens > 1]
    itl = _means(answers, lambda s: s.ended_at, lambda s: 1000 * s.itl_s, wide_s, points)
    itl_ms = [Curve("ITL", at, itl)]
    yield Panel("ITL ms, mean", itl_ms, "minutes", target=1000 * targets.itl_s)


def roles(outcome: SimulationResult) -> Iterator[Curve]:
    """How many workers take requests in each role, over minutes."""
    held = {at: counts for at, *counts in outcome.roles}  # the last of each moment
    minutes = [at / 60 for at in (*held, outcome.seconds)]
    last = list(held.values())[-1:]
    for i, name in enumerate(("prefill", "decode")):
        yield Curve(name, minutes, [c[i] for c in (*held.values(), *last)], Style.steps)


def _count(
    seen: Sequence[RequestResult],
    when: Callable[[RequestResult], float],
    wide_s: float,
    points: int,
) -> list[float]:
    counts = [0.0] * points
    for each in seen:
        counts[min(points - 1, int(when(each) / wide_s))] += 1 / wide_s
    return counts


def _means(
    seen: Sequence[RequestResult],
    when: Callable[[RequestResult], float],
    value: Callable[[RequestResult], float],
    wide_s: float,
    points: int,
) -> list[float]:
    """nan, a gap in the curve, where there was nothing."""
    values: list[list[float]] = [[] for _ in range(points)]
    for each in seen:
        values[min(points - 1, int(when(each) / wide_s))].append(value(each))
    return [mean(part) for part in values]
