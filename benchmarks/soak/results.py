"""Results of the soak benchmark, their checks and tables."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
from rich.table import Table

from benchmarks.frontend.streams import quantile

LONG_MIN, GROWTH = 10.0, 20.0  # minimum duration for the growth check; MiB per hour
KEPT_CONNECTIONS = 4  # that a process opens to engines at its own time and keeps


class ProcessUsage(msgspec.Struct, frozen=True):
    """Resources of one process of the job, from proc(5)."""

    pid: int
    rss_mib: float
    pss_mib: float
    fds: int
    threads: int


class SoakSample(msgspec.Struct, frozen=True):
    """Measurements since the last sample; `at_s` counts from the start of the load."""

    at_s: float
    rate_hz: float  # complete responses
    other_programs_cores: float  # used by other programs; at most 0.2 in a valid run
    disconnected: int
    errors: dict[str, int]
    whole_ms: tuple[float, float]  # p50 and p99
    stream_ms: tuple[float, float]
    ttft_ms: tuple[float, float]
    gauges: dict[str, float]
    processes: dict[str, ProcessUsage]


class SoakResults(msgspec.Struct):
    """Results of a run; missing ones are empty."""

    minutes: float
    capacity_hz: float = 0.0
    rate_hz: float = 0.0
    sent: int = 0
    disconnected: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=Counter)
    first_error: str = ""
    start: dict[str, ProcessUsage] = msgspec.field(default_factory=dict)
    samples: list[SoakSample] = msgspec.field(default_factory=list)
    end: dict[str, ProcessUsage] = msgspec.field(default_factory=dict)
    gauges: dict[str, float] = msgspec.field(default_factory=dict)  # at the end


def nonzero_gauges(gauges: dict[str, float]) -> dict[str, float]:
    """Return the gauges that are not zero; all should be when the job is idle."""
    return {name: value for name, value in gauges.items() if value and "_total" not in name}


def memory_growth(samples: Sequence[SoakSample], name: str) -> float:
    """Return the growth of a process in MiB per hour: the slope of RSS over the last two thirds.

    Returns nan for fewer than three samples.
    """
    late = [s for s in samples[len(samples) // 3 :] if name in s.processes]
    if len(late) < 3:
        return float("nan")
    hours = [s.at_s / 3600 for s in late]
    rss = [s.processes[name].rss_mib for s in late]
    return statistics.linear_regression(hours, rss).slope


def checks(found: SoakResults) -> Iterator[tuple[str, str, bool]]:
    """Yield name, observed value and result of each check."""
    yield "the run is complete", f"{len(found.samples)} samples", bool(found.end)
    yield "no errors", str(dict(found.errors) or 0), not found.errors
    if not found.end:
        return
    left = nonzero_gauges(found.gauges)
    yield "all resources are released", str(left or 0), not left
    pids = [{name: p.pid for name, p in side.items()} for side in (found.start, found.end)]
    yield "the same processes", ", ".join(pids[1]), pids[0] == pids[1]
    fds = {n: p.fds - found.start[n].fds for n, p in found.end.items() if n in found.start}
    more = {name: count for name, count in fds.items() if count > KEPT_CONNECTIONS}
    yield "no more file descriptors", str(more or 0), not more
    grown = {name: memory_growth(found.samples, name) for name in found.start}
    judged = found.minutes >= LONG_MIN
    most = max(grown.values())
    said = f"at most {most:+.1f} MiB/h" if judged else "run too short"
    yield "flat memory", said, not judged or most < GROWTH


def sample_line(sample: SoakSample, errors: int) -> str:
    """Return a sample as one line."""
    gauges = sample.gauges
    rss = ", ".join(f"{name} {p.rss_mib:.0f}" for name, p in sample.processes.items())
    return (
        f"{sample.at_s / 60:5.1f} min  {sample.rate_hz:.0f}/s  {errors} errors"
        f"  {sample.disconnected} disconnected"
        f"  whole {_ms(sample.whole_ms)}  stream {_ms(sample.stream_ms)}"
        f"  TTFT {_ms(sample.ttft_ms)} ms  {gauges['requests_running']:.0f} running"
        f"  {gauges['requests_waiting']:.0f} waiting  {sample.other_programs_cores:.1f} cores lost"
        f"  MiB: {rss}"
    )


def _ms(value: tuple[float, float]) -> str:
    return f"{value[0]:.0f}/{value[1]:.0f}"


def p50_p99_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """Return both quantiles, 0 without values, since JSON has no nan."""
    ordered = sorted(seconds) or [0.0]
    return quantile(ordered, 0.50) * 1e3, quantile(ordered, 0.99) * 1e3


def tables(found: SoakResults) -> Iterator[Table]:
    """Yield tables of traffic, gauges, processes and checks."""
    if found.samples:
        yield _traffic(found)
        yield _gauges(found)
        yield _processes(found)
    checked = Table("check", "seen", "", title="Checks")
    for name, seen, good in checks(found):
        checked.add_row(name, seen, "[green]ok[/]" if good else "[bold red]FAILED[/]")
    yield checked


def _traffic(found: SoakResults) -> Table:
    title = (
        f"{found.samples[-1].at_s / 60:.1f} minutes at {found.rate_hz:.0f} requests/s, the capacity"
        f" is {found.capacity_hz:.0f}/s: {found.sent:,} requests,"
        f" {found.disconnected:,} clients disconnected"
    )
    noise = statistics.median(s.other_programs_cores for s in found.samples)
    caption = f"other programs used {noise:.2f} cores"
    table = Table(
        "ms", "p50: median", "p50: worst", "p99: median", "p99: worst", title=title, caption=caption
    )
    rows = {"whole": "whole_ms", "stream": "stream_ms", "TTFT": "ttft_ms"}
    for name, field in rows.items():
        p50, p99 = zip(*(getattr(s, field) for s in found.samples), strict=True)
        cells = (statistics.median(p50), max(p50), statistics.median(p99), max(p99))
        table.add_row(name, *(f"{cell:.1f}" for cell in cells))
    return table


def _gauges(found: SoakResults) -> Table:
    table = Table("metric", "median", "most", "at the end", title="The job's own figures")
    for name in found.samples[-1].gauges:
        seen = [s.gauges.get(name, 0.0) for s in found.samples]
        end = f"{found.gauges[name]:g}" if name in found.gauges else "-"
        table.add_row(name, f"{statistics.median(seen):.3g}", f"{max(seen):g}", end)
    return table


def _processes(found: SoakResults) -> Table:
    head = ("RSS first", "last", "MiB/h", "PSS first", "last", "fds start", "most", "end")
    table = Table("MiB", *head, "threads", title="Processes; first and last under load")
    for name, start in found.start.items():
        seen = [s.processes[name] for s in found.samples if name in s.processes] or [start]
        first, last, end = seen[0], seen[-1], found.end.get(name)
        memory = (first.rss_mib, last.rss_mib, memory_growth(found.samples, name))
        shared = (first.pss_mib, last.pss_mib)
        fds = (start.fds, max(p.fds for p in seen), end.fds if end else "-")
        cells = [f"{v:.1f}" for v in (*memory, *shared)] + [str(n) for n in fds]
        table.add_row(name, *cells, f"{start.threads} to {last.threads}")
    return table
