"""Plots load, roles and latencies of a simulated job over time."""

from collections.abc import Callable, Iterable, Iterator

from hpc_dynamo.config import TopologyKind
from hpc_dynamo.plotting import Curve, Panel, Style
from hpc_dynamo.simulation.result import RequestResult, SimulationResult, mean

Value = Callable[[RequestResult], float]

POINTS = 60  # approximate number of points of a curve
MIN_POINT_S = 5.0  # shorter averages would be noisy


def panels(result: SimulationResult, kind: TopologyKind) -> Iterator[Panel]:
    """Yield the panels for plotting.draw."""
    completed, targets = result.completed, result.targets
    point_s = max(MIN_POINT_S, result.seconds / POINTS)
    points = 1 + int(result.seconds / point_s)

    def bins(results: Iterable[RequestResult], when: Value) -> list[list[RequestResult]]:
        found: list[list[RequestResult]] = [[] for _ in range(points)]
        for each in results:
            found[min(points - 1, int(when(each) / point_s))].append(each)
        return found

    def means(results: Iterable[RequestResult], when: Value, value: Value) -> list[float]:
        # The mean is nan, a gap in the curve, without values.
        return [mean([value(each) for each in part]) for part in bins(results, when)]

    good = [r for r in completed if r.within_targets(targets)]
    arrived = [len(part) / point_s for part in bins(result.results, lambda r: r.at)]
    in_time = [len(part) / point_s for part in bins(good, lambda r: r.ended_at)]
    at = [i * point_s / 60 for i in range(points)]
    rates = [Curve("arrived", at, arrived), Curve("within both targets", at, in_time)]
    yield Panel("requests/s", rates)
    if kind is TopologyKind.disaggregated:
        yield Panel("workers", list(roles(result)))
    ttft = means(completed, lambda r: r.first_token_at, lambda r: r.ttft_s)
    yield Panel("TTFT s, mean", [Curve("TTFT", at, ttft)], target=targets.ttft_s)
    responses = [r for r in completed if r.response_tokens > 1]
    itl = [Curve("ITL", at, means(responses, lambda r: r.ended_at, lambda r: 1000 * r.itl_s))]
    yield Panel("ITL ms, mean", itl, "minutes", target=1000 * targets.itl_s)


def roles(result: SimulationResult) -> Iterator[Curve]:
    """Yield the number of workers per role over time in minutes."""
    last_counts = {at: counts for at, *counts in result.roles}  # one entry per time
    minutes = [at / 60 for at in (*last_counts, result.seconds)]
    last = list(last_counts.values())[-1:]
    for i, name in enumerate(("prefill", "decode")):
        yield Curve(name, minutes, [c[i] for c in (*last_counts.values(), *last)], Style.steps)
