"""Stays with a run until it ends: a progress bar on a terminal, plain lines in a log.

Ctrl-C ends the job in order, a second one leaves it alone and returns.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hpc_dynamo.cli import views
from hpc_dynamo.launch import Job, JobState
from hpc_dynamo.messages import Outcome, Status, WorkerReport, WorkerState
from hpc_dynamo.run import Attempt

LOOK_S = 0.25  # at the run folder
ASK_S = 3.0  # Slurm, which many ask
LINE_S = 15.0  # between two lines in a log
SHARED_DISK_S = 10.0  # for an outcome to be seen after its job has left the queue


def follow(attempt: Attempt, job: Job, console: Console) -> Outcome:
    """The outcome of the attempt. Ends also when its job is gone without one."""
    news, ended_at, asked_at = _News(attempt), 0.0, 0.0
    with _display(console) as display, _interrupt(job, console):
        while True:
            outcome = attempt.outcome()
            if outcome is not None:
                display.show(news.lines(), attempt.status(), "")
                return outcome
            waiting = ""
            if time.monotonic() - asked_at > ASK_S:
                state, detail = job.state()
                asked_at = time.monotonic()
                waiting = f"{state}, {detail}" if state is not JobState.running else ""
                if state is not JobState.ended:
                    ended_at = 0.0
                elif not ended_at:
                    ended_at = asked_at
            if ended_at and time.monotonic() - ended_at > SHARED_DISK_S:
                return _vanished(attempt, detail)
            display.show(news.lines(), attempt.status(), waiting)
            time.sleep(LOOK_S)


def _vanished(attempt: Attempt, detail: str) -> Outcome:
    rows = [f"the job ended without a word ({detail}): killed, or out of memory or time?"]
    rows += [f"  {file}: {tail}" for file in _complaints(attempt) if (tail := _last_line(file))]
    rows += [f"  logs: {attempt.logs} and {attempt.submitit}"]
    rows += ["  try: the same command goes on from here"]
    return Outcome(exit_code=1, message="\n".join(rows))


def _complaints(attempt: Attempt) -> list[Path]:
    return sorted([*attempt.submitit.glob("*.err"), *attempt.logs.glob("agent-*.log")])


def _last_line(file: Path) -> str:
    return next(reversed(file.read_text(errors="replace").splitlines()), "")


@contextmanager
def _interrupt(job: Job, console: Console) -> Iterator[None]:
    """Stop the job at the first signal; be killed by the second."""

    def handle(number: int, frame: object) -> None:
        console.print("stopping the job; once more to leave without waiting")
        signal.signal(number, signal.default_int_handler)
        job.stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, handle) for n in numbers]
    try:
        yield
    finally:
        for n, handler in zip(numbers, before, strict=True):
            signal.signal(n, handler)


class _News:
    """What changed since the last look: phases and workers."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._phase = attempt, ""
        self._workers: dict[int, WorkerReport] = {}

    def lines(self) -> Iterator[str]:
        status = self._attempt.status()
        if status is None:
            return
        if status.phase != self._phase:
            self._phase = status.phase
            yield status.phase
        for worker in status.workers:
            old = self._workers.get(worker.rank)
            self._workers[worker.rank] = worker
            if old is None or old.state != worker.state:
                ready = worker.state is WorkerState.ready
                started = f" after {worker.start_s:.1f} s" if ready else ""
                what = f"worker {worker.rank} ({worker.role}) on {worker.host}: {worker.state}"
                yield f"{what}{started} {worker.detail}".strip()


class _Lines:
    """For a log: news at once, progress now and then."""

    def __init__(self, console: Console) -> None:
        self._console, self._at, self._said = console, 0.0, ""

    def show(self, news: Iterator[str], status: Status | None, waiting: str) -> None:
        for line in news:
            self._console.print(line, markup=False)
        if waiting and waiting != self._said:
            self._said = waiting
            self._console.print(waiting, markup=False)
        if status and status.progress.total and time.monotonic() - self._at > LINE_S:
            self._at = time.monotonic()
            self._console.print(views.progress_line(status.progress), markup=False)


class _Bar:
    """For a terminal: news scroll by above a bar with rate and time left."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._task = progress.add_task("waiting", total=None, info="")

    def show(self, news: Iterator[str], status: Status | None, waiting: str) -> None:
        for line in news:
            self._progress.console.print(line, markup=False)
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


@contextmanager
def _display(console: Console) -> Iterator["_Lines | _Bar"]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(console, progress)
