"""Plots a profile: measurements as points, the interpolation as lines."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpc_dynamo.planner.interpolation import ProfilePerformance
from hpc_dynamo.planner.profile import EngineProfile, Measurement, Metric
from hpc_dynamo.plotting import Curve, Panel, Style, draw

STEPS = 64  # points of a line
SHARES = (0.0, 0.25, 0.5)  # cached tokens, as shares of the longest prompt


def plot_profile(file: Path, profile: EngineProfile) -> None:
    """Write the plot to a file. Raises MissingDependency without matplotlib."""
    worker = ProfilePerformance(profile)
    panels = [
        Panel("TTFT, s", list(_ttft(profile, worker)), "tokens computed (cached before them)"),
        Panel("ITL, s", list(_itl(profile, worker)), "sequences (mean context)"),
    ]
    if profile.of(Metric.transfer):
        curves = list(_transfer(profile, worker))
        panels.append(Panel("transfer and one step, s", curves, "tokens"))
    draw(file, f"{profile.title}, {profile.hardware}", panels)


def _ttft(profile: EngineProfile, worker: ProfilePerformance) -> Iterator[Curve]:
    longest = max(p.point.prompt_tokens for p in profile.of(Metric.ttft))
    for share in SHARES:
        cached = int(share * longest)
        lengths = _steps([1, longest - cached])
        times = [worker.prefill_s(cached + n, cached) for n in lengths]
        yield Curve(f"{cached} cached", lengths, times)
    yield from _measured(profile, Metric.ttft, lambda p: p.point.prompt_tokens - p.cached_tokens)


def _itl(profile: EngineProfile, worker: ProfilePerformance) -> Iterator[Curve]:
    """Yield ITL curves, as far as the sequences fit into the KV cache."""
    longest = max(p.context_tokens for p in profile.of(Metric.itl))
    for context in (longest / 16, longest / 4, longest):
        room = profile.kv_tokens / context if profile.kv_tokens else profile.max_sequences
        counts = _steps([1, max(1, min(profile.max_sequences, room))])
        times = [worker.itl_s(n, context) for n in counts]
        yield Curve(f"{context:.0f} tokens", counts, times)
    yield from _measured(profile, Metric.itl, lambda p: p.point.sequences)


def _transfer(profile: EngineProfile, worker: ProfilePerformance) -> Iterator[Curve]:
    lengths = _steps([p.point.prompt_tokens for p in profile.of(Metric.transfer)])
    times = [worker.transfer_s(n) + worker.itl_s(1, n) for n in lengths]
    yield Curve("nearest line", lengths, times)
    yield from _measured(profile, Metric.transfer, lambda p: p.point.prompt_tokens)


def _measured(
    profile: EngineProfile, metric: Metric, x: Callable[[Measurement], float]
) -> Iterator[Curve]:
    for held_out, name in ((False, "measured"), (True, "held out")):
        points = [(x(p), p.seconds) for p in profile.of(metric, held_out=held_out) if p.seconds]
        if points:
            yield Curve(name, [a for a, _ in points], [b for _, b in points], Style.points)


def _steps(xs: Sequence[float]) -> list[float]:
    low, high = min(xs), max(xs)
    return [low + (high - low) * i / STEPS for i in range(STEPS + 1)]
