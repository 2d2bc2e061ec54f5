"""Plots curves with matplotlib, an optional dependency."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpc_dynamo.errors import MissingDependency

WIDTH, HEIGHT = 10.0, 2.6  # inches per panel


class Style(StrEnum):
    """Style of a curve."""

    line = "line"
    steps = "steps"  # each value holds until the next point
    points = "points"


@dataclass(frozen=True)
class Curve:
    """Named points of equal length `xs` and `ys`."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: Style = Style.line


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `target` is a limit, drawn as a horizontal line."""

    y_label: str
    curves: Sequence[Curve]
    x_label: str = ""
    target: float | None = None


def import_matplotlib() -> Any:
    """Return matplotlib's Figure class; it is imported only for a plot.

    Raises MissingDependency.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        hint = "pip install 'hpc-dynamo[draw]'"
        raise MissingDependency("pictures need matplotlib", hint=hint) from e
    return Figure


def draw(file: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw panels below each other into a PNG, SVG or PDF, by the suffix of the file.

    Raises MissingDependency without matplotlib.
    """
    figure_of(title, panels).savefig(file, dpi=120)


def figure_of(title: str, panels: Sequence[Panel]) -> Any:
    """Return a matplotlib figure. Vertical axes start at 0; counts have integer ticks.

    Raises MissingDependency without matplotlib.
    """
    figure = import_matplotlib()(figsize=(WIDTH, HEIGHT * len(panels)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        for index, curve in enumerate(panel.curves):
            _add(ax, curve, above=len(panel.curves) - 1 - index)
        if panel.target is not None:
            ax.axhline(panel.target, color="grey", linestyle="--", linewidth=1, label="target")
        ax.set_xlabel(panel.x_label)
        ax.set_ylabel(panel.y_label)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        _scale(ax, panel)
    return figure


def _scale(ax: Any, panel: Panel) -> None:
    if any(curve.style is Style.steps for curve in panel.curves):
        most = max((max(curve.ys, default=0.0) for curve in panel.curves), default=0.0)
        ax.set_ylim(0, max(1.0, most) * 1.15)
        ax.yaxis.get_major_locator().set_params(integer=True)
    else:
        ax.set_ylim(bottom=0)


def _add(ax: Any, curve: Curve, above: int) -> None:  # matplotlib's Axes, not imported here
    """Add a curve below `above` others; it is drawn wider to stay visible."""
    match curve.style:
        case Style.steps:
            width, alpha = 2.0 + 3.0 * above, 0.5 if above else 1.0
            ax.step(
                curve.xs, curve.ys, where="post", label=curve.name, linewidth=width, alpha=alpha
            )
        case Style.points:
            ax.plot(curve.xs, curve.ys, ".", label=curve.name)
        case Style.line:
            ax.plot(curve.xs, curve.ys, label=curve.name)
