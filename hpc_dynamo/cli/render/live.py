"""Displays of an active run: redrawn in place on a terminal, plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.live import Live

from hpc_dynamo.cli.render import serving
from hpc_dynamo.cli.render.console import FoldedLines, can_redraw
from hpc_dynamo.cli.render.progress import ProgressView, progress_line
from hpc_dynamo.cli.render.status import status
from hpc_dynamo.cli.run_watcher import POLL_S, RunWatcher
from hpc_dynamo.config import Task
from hpc_dynamo.messages import Progress, Status

LINE_S = 15.0  # between two lines of progress in a log


class Display(Protocol):
    """Shows one attempt."""

    def show(self, changes: Iterator[str], waiting: str) -> None:
        """Print the changes and update the rest. `waiting`: the reason why there is no job yet."""


@contextmanager
def display(watcher: RunWatcher, console: Console) -> Iterator[Display]:
    """Yield the display for this console and the task of the attempt.

    Redrawn text is removed at the end: the caller prints the outcome.
    """
    if not can_redraw(console.file):
        yield _LogDisplay(watcher, console)
        return
    serves = watcher.attempt.config().task is Task.serve
    with _live(console) as live:
        yield _TableDisplay(watcher, live) if serves else _ProgressDisplay(watcher, live)


def show_until_end(watcher: RunWatcher, console: Console) -> None:
    """Show the live table until the run ends or the user presses Ctrl-C."""
    with suppress(KeyboardInterrupt), _live(console) as live:
        table = _TableDisplay(watcher, live)
        while watcher.outcome() is None:
            table.show(iter(()), watcher.waiting)
            time.sleep(POLL_S)


def _live(console: Console) -> Live:
    """Return a display that is redrawn for each update, without a timer of its own."""
    return Live(console=console, auto_refresh=False, transient=True)


class _LogDisplay:
    """Prints changes at once, and progress at intervals of `LINE_S`."""

    def __init__(self, watcher: RunWatcher, console: Console) -> None:
        self._watcher, self._console = watcher, console
        self._progress_at, self._waiting, self._progress = 0.0, "", ""

    def show(self, changes: Iterator[str], waiting: str) -> None:
        for line in changes:
            self._print(line)
        if waiting and waiting != self._waiting:
            self._waiting = waiting
            self._print(waiting)
        current = self._watcher.attempt.status()
        if current and time.monotonic() - self._progress_at > LINE_S:
            self._progress_at = time.monotonic()
            self._print_progress(current)

    def _print_progress(self, current: Status) -> None:
        """Print the progress if it has changed: an idle endpoint must not fill a log."""
        line = ""
        if current.traffic and current.traffic.requests:
            line = serving.traffic_line(current.traffic)
        elif current.progress.total:
            line = progress_line(current.progress)
        if line and line != self._progress:
            self._progress = line
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False)


class _ProgressDisplay:
    """Shows a batch or a profile on a terminal: changes scroll above the progress bar."""

    def __init__(self, watcher: RunWatcher, live: Live) -> None:
        self._watcher, self._live, self._started = watcher, live, time.monotonic()

    def show(self, changes: Iterator[str], waiting: str) -> None:
        for line in changes:
            self._live.console.print(line, markup=False)
        current = self._watcher.attempt.status()
        phase = current.phase if current else waiting or "waiting for its nodes"
        progress = current.progress if current else Progress()
        view = ProgressView(progress, phase, self._started)
        self._live.update(FoldedLines(view), refresh=True)


class _TableDisplay:
    """Shows a serving run on a terminal: changes scroll above the table of workers."""

    def __init__(self, watcher: RunWatcher, live: Live) -> None:
        self._watcher, self._live = watcher, live

    def show(self, changes: Iterator[str], waiting: str) -> None:
        for line in changes:
            self._live.console.print(line, markup=False)
        job = self._watcher.state, self._watcher.detail
        self._live.update(FoldedLines(status(self._watcher.attempt, job)), refresh=True)
