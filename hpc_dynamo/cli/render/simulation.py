"""Tables and progress bar of `hpc-dynamo simulate`."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpc_dynamo.cli.render.console import can_redraw
from hpc_dynamo.cli.render.progress import duration
from hpc_dynamo.cli.render.table import Column, ResponsiveTable
from hpc_dynamo.config import Role
from hpc_dynamo.simulation import SimulationResult
from hpc_dynamo.simulation.result import mean, quantile
from hpc_dynamo.simulation.split_search import SplitResult


class SimulationBar(Progress):
    """Progress bar on stderr, if that is a terminal. `total` is the number of requests."""

    def __init__(self, total: int) -> None:
        console, text = Console(stderr=True), TextColumn("{task.description}")
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), text)
        off = not can_redraw(console.file)
        super().__init__(*columns, console=console, transient=True, disable=off)
        self._total, self._requests = total, self.add_task("", total=total)

    def restart(self, text: str) -> None:
        """Start again at zero, with another description."""
        self.reset(self._requests, description=text, total=self._total)

    def count_request(self) -> None:
        """Count one finished request."""
        self.advance(self._requests)


def split_text(workers: dict[Role, int]) -> str:
    return " + ".join(f"{count} {role}" for role, count in workers.items())


def split_overrides(best: SplitResult) -> str:
    """Return the overrides that select a split."""
    kind = "aggregated" if Role.aggregated in best.workers else "disaggregated"
    counts = (f"topology.{role}.workers={count}" for role, count in best.workers.items())
    return " ".join((f"topology={kind}", *counts))


def _title(first: SimulationResult, requests: int) -> str:
    o = first.targets
    targets = f"TTFT {o.ttft_s:g} s, ITL {1000 * o.itl_s:g} ms"
    return f"{requests} requests in {duration(first.seconds)} of virtual time; targets {targets}"


def result_table(outcome: SimulationResult, requests: int) -> Table:
    """Return the figures of one simulation."""
    title = _title(outcome, requests)
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    ttft, itl = outcome.ttft_s(), [1000 * s for s in outcome.itl_s()]
    failed = f", {outcome.failed_role_changes} failed" if outcome.failed_role_changes else ""
    rows = {
        "goodput": f"{outcome.goodput_hz:.3f} requests/s within both targets",
        "SLA attainment": f"{100 * outcome.attainment:.1f} % of all requests",
        "GPU-hours": f"{outcome.gpu_hours:.2f}",
        "TTFT mean, p50, p99": _spread(ttft, 2) + " s",
        "ITL mean, p50, p99": _spread(itl, 1) + " ms",
        "prompt tokens from caches": f"{100 * outcome.hit_rate:.1f} %",
        "role changes": f"{outcome.role_changes}{failed}",
        "refused or lost": f"{outcome.failed_requests} requests",
    }
    for row in rows.items():
        table.add_row(*row)
    return table


def comparison_table(tried: Sequence[SplitResult], requests: int) -> ResponsiveTable:
    """Return a table of splits, one a row."""
    names = ("goodput/s", "attained", "TTFT s", "p99 s", "ITL ms", "p99 ms", "refused")
    title = _title(tried[0].outcome, requests)
    table = ResponsiveTable("workers", *(Column(name, right=True) for name in names), title=title)
    for each in tried:
        o = each.outcome
        ttft, itl = o.ttft_s(), [1000 * s for s in o.itl_s()]
        table.add_row(
            split_text(each.workers),
            *(f"{o.goodput_hz:.3f}", f"{100 * o.attainment:.1f} %"),
            *(f"{mean(ttft):.2f}", f"{quantile(ttft, 0.99):.2f}"),
            *(f"{mean(itl):.1f}", f"{quantile(itl, 0.99):.1f}", str(o.failed_requests)),
        )
    return table


def _spread(ordered: Sequence[float], digits: int) -> str:
    shown = (mean(ordered), quantile(ordered, 0.5), quantile(ordered, 0.99))
    return ", ".join(f"{value:.{digits}f}" for value in shown)
