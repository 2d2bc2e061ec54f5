"""Report of the soak benchmark: lines while it runs, tables at its end."""

import statistics
from collections.abc import Iterator, Sequence

from rich.table import Table

from benchmarks.frontend.streams import quantile
from benchmarks.soak.checks import checks, memory_growth
from benchmarks.soak.results import SoakResults, SoakSample


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
