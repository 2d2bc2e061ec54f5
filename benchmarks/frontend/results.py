"""Result tables of benchmarks.frontend, with medians over the repeats."""

import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.table import Table

from benchmarks.common.machine import cpu_model
from benchmarks.frontend.load import Load, Measurement
from benchmarks.frontend.targets import BackendKind, Target

MICRO = 1e6
CPU = (
    "CPU: µs of frontend, backend and load generator for one {}; MiB: the frontend's peak (PSS);\n"
    "noise: cores that other programs used; do not use rates and latencies above 0.2"
)
ADDED = (
    "added: latency minus that of the backend without a frontend under the same load. "
    "Dynamo's mocker needs no HTTP and no time, so all of its latency counts as added."
)


@dataclass(frozen=True)
class ResultRow:
    """Measurement of one load on one target."""

    system: str
    version: str
    uses_floor_backend: bool
    load: Load
    figure: Measurement


class Results:
    """All measurements so far."""

    def __init__(self) -> None:
        self.rows: list[ResultRow] = []

    def add(self, system: Target, load: Load, figure: Measurement) -> None:
        self.rows.append(
            ResultRow(system.name, system.version, system.uses_floor_backend, load, figure)
        )

    def measurements(self, system: str, load: Load) -> list[Measurement]:
        """Return the repeats of one load on one target."""
        return [r.figure for r in self.rows if r.system == system and r.load == load]

    def floor(self, load: Load, value: Callable[[Measurement], float]) -> float:
        """Return the value of the backend without a frontend, nan if it was not measured."""
        figures = [r.figure for r in self.rows if r.system == FLOOR and r.load == load]
        return median(figures, value) if figures else float("nan")


FLOOR = "backend alone"
COSTS = ("frontend CPU", "backend", "load", "noise", "MiB", "errors")


def tables(found: Results) -> Iterator[Table]:
    """Yield a table for each prompt length, and one for each kind of stream."""
    loads = dict.fromkeys(row.load for row in found.rows)
    whole = [load for load in loads if load.backend_kind is BackendKind.ANSWERS]
    for tokens in dict.fromkeys(load.prompt_tokens for load in whole):
        yield _answers(found, [load for load in whole if load.prompt_tokens == tokens])
    for load in loads:
        if load.stream:
            yield _streams(found, load)


def _answers(found: Results, loads: list[Load]) -> Table:
    table = _table(found, loads[0], "one-token answers", f"{ADDED}\n{CPU.format('request')}")
    names = ("system", "conns", "requests/s", "p50 ms", "p99 ms", "added p50", "added p99")
    _columns(table, (*names, *COSTS))
    for load in loads:
        for row in _systems(found, load):
            figures = found.measurements(row.system, load)
            p50, p99 = median(figures, _p50), median(figures, _p99)
            floors = (found.floor(load, q) if row.uses_floor_backend else 0.0 for q in (_p50, _p99))
            added = (f"{v - f:.2f}" for v, f in zip((p50, p99), floors, strict=True))
            rate = spread(figures, lambda f: f.requests / f.seconds)
            cost = _cost(figures, lambda f: f.requests)
            cells = (str(load.connections), rate, f"{p50:.2f}", f"{p99:.2f}", *added, *cost)
            table.add_row(f"{row.system} {row.version}", *cells)
        table.add_section()
    return table


def _streams(found: Results, load: Load) -> Table:
    what = f"{load.connections} {load.backend_kind.value}, {load.answer_tokens} each"
    table = _table(found, load, what, CPU.format("token, its part of the request included"))
    names = ("system", "tokens/s", "TTFT p50 ms", "p99", "ITL p50 ms", "p99", "tokens a read")
    _columns(table, (*names, *COSTS))
    for row in _systems(found, load):
        figures = found.measurements(row.system, load)
        rate = spread(figures, lambda f: f.tokens / f.seconds)
        times = ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
        shown = (f"{median(figures, _streamed(name)):.2f}" for name in times)
        together = median(figures, lambda f: f.tokens / max(1.0, _streamed("reads")(f)))
        cost = _cost(figures, lambda f: f.tokens)
        table.add_row(f"{row.system} {row.version}", rate, *shown, f"{together:.1f}", *cost)
    return table


def _table(found: Results, load: Load, what: str, caption: str) -> Table:
    repeats = max(len(found.measurements(row.system, load)) for row in _systems(found, load))
    where = f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores in total"
    title = f"{what}; {load.kind} prompts of about {load.prompt_tokens:,} tokens\n{where}, "
    title += f"Python {platform.python_version()}; {load.seconds:.0f} s each, "
    return Table(title=f"{title}median (minimum to maximum) of {repeats}", caption=caption)


def _columns(table: Table, names: tuple[str, ...]) -> None:
    for name in names:
        table.add_column(name, justify="left" if name == "system" else "right")


def _cost(figures: list[Measurement], count: Callable[[Measurement], int]) -> tuple[str, ...]:
    """Return the cells for CPU times, peak memory of the frontend, and errors."""
    parts = ("frontend_s", "backend_s", "generator_s")
    cpu = (median(figures, _each(part, count)) for part in parts)
    noise = max(f.cost.other_programs_cores for f in figures)
    peak = max(f.cost.peak_mib for f in figures)
    errors = sum(f.errors for f in figures)
    return (*(f"{v:,.1f}" for v in cpu), f"{noise:.2f}", f"{peak:.0f}", str(errors))


def _each(part: str, count: Callable[[Measurement], int]) -> Callable[[Measurement], float]:
    return lambda figure: float(getattr(figure.cost, part)) * MICRO / max(1, count(figure))


def _systems(found: Results, load: Load) -> list[ResultRow]:
    """Return one row for each target of `load`, in order."""
    return list({row.system: row for row in found.rows if row.load == load}.values())


def _p50(figure: Measurement) -> float:
    return figure.p50_ms


def _p99(figure: Measurement) -> float:
    return figure.p99_ms


def _streamed(name: str) -> Callable[[Measurement], float]:
    return lambda figure: float(getattr(figure.streamed, name))


def median(figures: list[Measurement], value: Callable[[Measurement], float]) -> float:
    return statistics.median(map(value, figures))


def spread(figures: list[Measurement], value: Callable[[Measurement], float]) -> str:
    values = list(map(value, figures))
    least, most = min(values), max(values)
    middle = f"{statistics.median(values):,.0f}"
    return f"{middle} ({least:,.0f} to {most:,.0f})" if len(values) > 1 else middle
