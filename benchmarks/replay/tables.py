"""Results of the replay benchmark as tables."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from benchmarks.replay.results import Found, Run, spread

Column = tuple[str, Callable[[Run], float], str]
COLUMNS: tuple[Column, ...] = (
    ("hit rate %", lambda r: 100 * r.hit_rate, ".1f"),
    ("TTFT mean s", lambda r: r.ttft_mean_s, ".2f"),
    ("p50", lambda r: r.ttft_p50_s, ".2f"),
    ("p99", lambda r: r.ttft_p99_s, ".2f"),
    ("ITL mean ms", lambda r: 1e3 * r.itl_mean_s, ".1f"),
    ("p50", lambda r: 1e3 * r.itl_p50_s, ".1f"),
    ("p99", lambda r: 1e3 * r.itl_p99_s, ".0f"),
    ("good/s", lambda r: r.goodput_hz, ".2f"),
)
CAUTION = (
    "cores: used by the system and by other programs; late: p99 of the client's delay, "
    "in seconds of the trace. Do not use the times if others or late are large."
)


def tables(found: Found) -> Iterator[Table]:
    """Yield a table per topology."""
    for topology in dict.fromkeys(run.topology for run in found.runs):
        yield _table(found, topology)


def _table(found: Found, topology: str) -> Table:
    systems = found.of(topology)
    repeats = max(map(len, systems.values()))
    table = Table(title=_title(found, topology, repeats), caption=CAUTION)
    table.add_column("system")
    names = (*(name for name, *_ in COLUMNS), "errors", "cores: system", "others", "late")
    for name in names:
        table.add_column(name, justify="right")
    for system, runs in systems.items():
        table.add_row(system, *_cells(runs))
    return table


def _title(found: Found, topology: str, repeats: int) -> str:
    said = found.oracles[topology]
    what = ", ".join(f"{name} {value}" for name, value in found.settings.items())
    oracle = (
        f"oracle {100 * said.best:.1f} % (pooled {100 * said.pooled:.1f}, placed "
        f"{100 * said.placed:.1f}, endless caches {100 * said.endless:.1f})"
    )
    return f"{topology}: {oracle}\n{what}\n{found.machine}; median (least to most) of {repeats}"


def _cells(runs: Sequence[Run]) -> list[str]:
    cells = [spread(runs, value, form).replace("nan", "-") for _, value, form in COLUMNS]
    errors = sum(sum(run.errors.values()) for run in runs)
    noise: tuple[Column, ...] = (
        ("system", cores, ".2f"),
        ("others", lambda r: r.noise.others_cores, ".2f"),
        ("late", lambda r: r.late_p99_s, ".2f"),
    )
    return [*cells, str(errors), *(spread(runs, value, form) for _, value, form in noise)]


def cores(run: Run) -> float:
    """Return the cores that the system used."""
    return run.noise.system_s / max(run.noise.wall_s, 1e-9)
