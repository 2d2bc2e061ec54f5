"""Results of the predictor benchmark as tables."""

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from benchmarks.common.machine import cpu_model
from benchmarks.predictors.backtest import Predictions
from benchmarks.predictors.series import Series

FIRST = 5  # values before predictions count
BASE = "last"


@dataclass(frozen=True)
class Figure:
    """One predictor on one series."""

    name: str
    on: Series
    predictions: Predictions

    def _mean(self, values: list[float]) -> float:
        weights = self.on.weights[FIRST:]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    def _errors(self) -> list[float]:
        pairs = zip(self.predictions.values[FIRST:], self.on.values[FIRST:], strict=True)
        return [guess - value for guess, value in pairs]

    @property
    def mae(self) -> float:
        """Return the mean absolute error in the unit of the series."""
        return self._mean([abs(e) for e in self._errors()])

    @property
    def error(self) -> float:
        """Return the mean absolute error as a share of the mean value."""
        return self.mae / self._mean(self.on.values[FIRST:])

    @property
    def bias(self) -> float:
        return self._mean(self._errors()) / self._mean(self.on.values[FIRST:])

    @property
    def micros(self) -> float:
        return 1e6 * self.predictions.seconds / len(self.on.values)


def tables(figures: list[Figure]) -> Iterator[Table]:
    """Yield a table per workload, and one of all."""
    for workload in dict.fromkeys(f.on.workload for f in figures):
        yield _workload([f for f in figures if f.on.workload == workload])
    yield _scores(figures)


def _workload(figures: list[Figure]) -> Table:
    rows = dict.fromkeys(f.name for f in figures)
    columns = list({(f.on.interval_s, f.on.what): f.on for f in figures}.values())
    where = f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"
    title = f"{figures[0].on.workload}\n{where}, Python {platform.python_version()}"
    caption = "MAE in requests/s and tokens (% of the mean value; bias %); one step ahead"
    table = Table("predictor", title=title, caption=caption)
    for on in columns:
        table.add_column(f"{on.what}\n{on.interval_s} s", justify="right")
    for name in rows:
        of = {(f.on.interval_s, f.on.what): f for f in figures if f.name == name}
        cells = (of.get((on.interval_s, on.what)) for on in columns)
        table.add_row(name, *(_cell(f) if f else "-" for f in cells))
    return table


def _cell(f: Figure) -> str:
    mae = f"{f.mae:.2f}" if f.on.what == "rate" else f"{f.mae:,.0f}"
    return f"{mae} ({100 * f.error:.1f}; {100 * f.bias:+.1f})"


def _scores(figures: list[Figure]) -> Table:
    base = {_key(f): f.error for f in figures if f.name == BASE}
    workloads = list(dict.fromkeys(f.on.workload for f in figures))
    table = Table("predictor", title=f"errors by those of {BASE!r}, geometric mean over series")
    for name in (*workloads, "all", "rates", "lengths", "µs"):
        table.add_column(name.partition(":")[0], justify="right")
    for name in dict.fromkeys(f.name for f in figures):
        own = [f for f in figures if f.name == name]
        groups = [[f for f in own if f.on.workload == w] for w in workloads]
        rates = [f for f in own if f.on.what == "rate"]
        groups += [own, rates, [f for f in own if f not in rates]]
        scores = (f"{score(group, base):.3f}" for group in groups)
        table.add_row(name, *scores, f"{fmean(f.micros for f in own):,.1f}")
    return table


def score(figures: list[Figure], base: dict[tuple[str, int, str], float]) -> float:
    """Return the geometric mean of errors relative to those of `base`."""
    return math.exp(fmean(math.log(f.error / base[_key(f)]) for f in figures))


def _key(f: Figure) -> tuple[str, int, str]:
    return f.on.workload, f.on.interval_s, f.on.what
