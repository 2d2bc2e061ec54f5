"""How a run is shown while it goes on: a live picture on a terminal, plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hpc_dynamo.cli import serving, views
from hpc_dynamo.cli.watch import LOOK_S, Watch
from hpc_dynamo.config import Task
from hpc_dynamo.messages import Status

LINE_S = 15.0  # between two lines in a log


class Display(Protocol):
    """Shows one attempt."""

    def show(self, news: Iterator[str], waiting: str) -> None:
        """Say the news and bring the rest up to date. `waiting`: why there is no job yet."""


@contextmanager
def display(watch: Watch, console: Console) -> Iterator[Display]:
    """What suits the console and the task of the attempt."""
    if not console.file.isatty():  # what FORCE_COLOR calls a terminal cannot be drawn on
        yield _Lines(watch, console)
    elif watch.attempt.config().task is Task.serve:
        with _live(console) as live:
            yield _Table(watch, live)
    else:
        with Progress(*_bar_columns(), console=console) as progress:
            yield _Bar(watch, progress)


def until_end(watch: Watch, console: Console) -> None:
    """The live table, on a terminal, until the run ends or Ctrl-C; it only looks."""
    with suppress(KeyboardInterrupt), _live(console) as live:
        table = _Table(watch, live)
        while watch.outcome() is None:
            table.show(iter(()), watch.waiting)
            time.sleep(LOOK_S)
        table.show(iter(()), "")


def _live(console: Console) -> Live:
    """Redrawn when something new is shown, not by a clock of its own."""
    return Live(console=console, auto_refresh=False)


class _Lines:
    """For a log: news at once, progress now and then."""

    def __init__(self, watch: Watch, console: Console) -> None:
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
            line = views.progress_line(status.progress)
        if line and line != self._progress:
            self._progress = line
            self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)


class _Bar:
    """A batch or a profile on a terminal: news scroll by above a bar with rate and time left."""

    def __init__(self, watch: Watch, progress: Progress) -> None:
        self._watch, self._progress = watch, progress
        self._task = progress.add_task("waiting", total=None, info="")

    def show(self, news: Iterator[str], waiting: str) -> None:
        for line in news:
            self._progress.console.print(line, markup=False)
        status = self._watch.attempt.status()
        if status is None:
            if waiting:
                self._progress.update(self._task, description=waiting)
            return
        p = status.progress
        info = views.progress_line(p).split("done, ", 1)[-1] if p.total else ""
        self._progress.update(
            self._task,
            description=status.phase,
            completed=p.done + p.failed,
            total=p.total or None,
            info=info,
        )


class _Table:
    """A serving run on a terminal: news scroll by above the table of ranks."""

    def __init__(self, watch: Watch, live: Live) -> None:
        self._watch, self._live = watch, live

    def show(self, news: Iterator[str], waiting: str) -> None:
        for line in news:
            self._live.console.print(line, markup=False)
        job = self._watch.state, self._watch.detail
        self._live.update(views.status(self._watch.attempt, job), refresh=True)


def _bar_columns() -> tuple[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        TimeElapsedColumn(),
    )
