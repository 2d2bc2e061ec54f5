"""Plots the results: hit rates with the oracle, TTFT of each system, goodput."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.replay.results import CURVE, Found, Run, median
from hpc_dynamo.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(found: Found, file: Path) -> None:
    """Write a PNG. Raises MissingDependency without matplotlib."""
    need()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    topologies = list(dict.fromkeys(run.topology for run in found.runs))
    height = 1.2 + 3.2 * len(topologies)
    figure, rows = pyplot.subplots(
        len(topologies), 3, figsize=(15, height), squeeze=False, layout="constrained"
    )
    for topology, (hits, ttft, goodput) in zip(topologies, rows, strict=True):
        systems = found.of(topology)
        _bars(hits, systems, lambda r: 100 * r.hit_rate)
        hits.axvline(100 * found.oracles[topology].best, color="black", linestyle="--")
        hits.set_title(f"{topology}: prompt tokens found in caches, %\n(dashed: the oracle)")
        _curves(ttft, systems)
        _bars(goodput, systems, lambda r: r.goodput_hz)
        goodput.set_yticks([])  # rows and colours are those on the left
        goodput.set_title("goodput, requests/s")
    figure.suptitle(f"{found.machine}\n{', '.join(f'{k} {v}' for k, v in found.settings.items())}")
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def need() -> None:
    """Raise MissingDependency without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingDependency("--out needs matplotlib", hint="pip install -e '.[bench]'") from e


def _bars(axes: "Axes", systems: dict[str, list[Run]], value: Callable[[Run], float]) -> None:
    names, values = list(systems), [median(runs, value) for runs in systems.values()]
    bars = axes.barh(names, values, color=[f"C{i}" for i in range(len(names))])
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.2)


def _curves(axes: "Axes", systems: dict[str, list[Run]]) -> None:
    for runs in systems.values():
        curve = [median(runs, lambda r, i=i: r.ttft_curve_s[i]) for i in range(len(CURVE))]  # type: ignore[misc]
        axes.plot(curve, [100 * q for q in CURVE])
    axes.set_xscale("log")
    axes.set_title("TTFT: % of requests within so many seconds")
    axes.grid(alpha=0.3)
