"""Progress of a batch or a profile: the count of finished requests comes first at any width."""

import math
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpc_dynamo.cli.render.table import wrapped_lines
from hpc_dynamo.messages import Progress

LEAST_BAR, MOST_BAR = 8, 40  # columns


class ProgressView:
    """`done/total phase ━━━━ elapsed`, and the figures of `progress` in lines below it."""

    def __init__(self, progress: Progress, phase: str, began: float) -> None:
        self._progress, self._phase, self._began = progress, phase, began

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        p, width = self._progress, options.max_width
        head = f"{finished_of_total(p)} {self._phase}" if p.total else self._phase
        passed = stopwatch(time.monotonic() - self._began)
        room = width - len(head) - len(passed) - 2
        if p.total and room >= LEAST_BAR:
            yield self._row(head, passed, min(room, MOST_BAR))
        else:
            yield from wrapped_lines([head, passed], width)
        if p.total:
            yield from (
                Text(f"  {line}") for line in wrapped_lines(figures(p), width - 2, indent="")
            )

    def _row(self, head: str, passed: str, room: int) -> Table:
        p = self._progress
        bar = ProgressBar(float(p.total), p.done + p.failed, width=room)
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(Text(head), bar, Text(passed))
        return row


def finished_of_total(p: Progress) -> str:
    return f"{p.done + p.failed}/{p.total}"


def figures(p: Progress, *, ended: bool = False) -> list[str]:
    """Return the other figures, the most important first."""
    seconds = p.elapsed_s or math.inf
    rate = (p.done - p.resumed) / seconds
    waiting = p.total - p.done - p.failed
    parts = [f"{p.failed} failed", f"{p.running} running", f"{rate:.1f} {p.unit}/s"]
    if p.unit == "requests":
        parts.append(f"{p.completion_tokens / seconds:.0f} tokens/s")
    if rate and waiting and not ended:
        parts.append(f"{duration(waiting / rate)} left")
    return parts


def progress_line(p: Progress, *, ended: bool = False) -> str:
    """Return one line for a log."""
    return ", ".join((f"{p.done}/{p.total} done", *figures(p, ended=ended)))


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{seconds:.1f} s"


def stopwatch(seconds: float) -> str:
    """Format seconds as a stopwatch does."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
