"""How a run is shown while it goes on: a live picture on a terminal, plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.live import Live

from hpc_dynamo.cli.render import serving
from hpc_dynamo.cli.render import status as views
from hpc_dynamo.cli.render.console import FoldedLines, can_redraw
from hpc_dynamo.cli.render.progress import ProgressView, progress_line
from hpc_dynamo.cli.run_watcher import POLL_S, RunWatcher
from hpc_dynamo.config import Task
from hpc_dynamo.messages import Progress, Status

LINE_S = 15.0  # between two lines in a log


class Display(Protocol):
    """Shows one attempt."""

    def show(self, changes: Iterator[str], waiting: str) -> None:
        """Print the news and update the rest. `waiting`: why there is no job yet."""


@contextmanager
def display(watch: RunWatcher, console: Console) -> Iterator[Display]:
    """Yield the display for this console and the task of the attempt. Redrawn text is removed at
    the end: the caller prints the outcome."""
    if not can_redraw(console.file):
        yield _LogDisplay(watch, console)
        return
    serves = watch.attempt.config().task is Task.serve
    with _live(console) as live:
        yield _TableDisplay(watch, live) if serves else _ProgressDisplay(watch, live)


def show_until_end(watch: RunWatcher, console: Console) -> None:
    """The live table, on a terminal, until the run ends or Ctrl-C; it only looks."""
    with suppress(KeyboardInterrupt), _live(console) as live:
        table = _TableDisplay(watch, live)
        while watch.outcome() is None:
            table.show(iter(()), watch.waiting)
            time.sleep(POLL_S)


def _live(console: Console) -> Live:
    """Redrawn when something new is shown, not by a clock of its own."""
    return Live(console=console, auto_refresh=False, transient=True)


class _LogDisplay:
    """For a log: news at once, progress now and then."""

    def __init__(self, watch: RunWatcher, console: Console) -> None:
        self._watch, self._console = watch, console
        self._at, self._said, self._progress = 0.0, "", ""

    def show(self, news: Iterator[str], waiting: str) -> None:
        for line in news:
            self._say(line)
        if waiting and waiting != self._said:
            self._said = waiting
            self._say(waiting)
        status = self._watch.attempt.status()
        if status and time.monotonic() - self._at > LINE_S:
            self._at = time.monotonic()
            self._say_progress(status)

    def _say_progress(self, status: Status) -> None:
        """Nothing where nothing has changed: an idle endpoint must not fill a log."""
        line = ""
        if status.traffic and status.traffic.requests:
            line = serving.traffic_line(status.traffic)
        elif status.progress.total:
            line = progress_line(status.progress)
        if line and line != self._progress:
            self._progress = line
            self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)


class _ProgressDisplay:
    """A batch or a profile on a terminal: news scroll by above a bar with rate and time left."""

    def __init__(self, watch: RunWatcher, live: Live) -> None:
        self._watch, self._live, self._began = watch, live, time.monotonic()

    def show(self, news: Iterator[str], waiting: str) -> None:
        for line in news:
            self._live.console.print(line, markup=False)
        status = self._watch.attempt.status()
        phase = status.phase if status else waiting or "waiting for its nodes"
        progress = status.progress if status else Progress()
        self._live.update(FoldedLines(ProgressView(progress, phase, self._began)), refresh=True)


class _TableDisplay:
    """A serving run on a terminal: news scroll by above the table of ranks."""

    def __init__(self, watch: RunWatcher, live: Live) -> None:
        self._watch, self._live = watch, live

    def show(self, news: Iterator[str], waiting: str) -> None:
        for line in news:
            self._live.console.print(line, markup=False)
        job = self._watch.state, self._watch.detail
        self._live.update(FoldedLines(views.status(self._watch.attempt, job)), refresh=True)
