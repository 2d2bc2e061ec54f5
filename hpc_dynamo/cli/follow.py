"""Follow an attempt until it ends."""

import time
from collections.abc import Iterator

from rich.console import Console

from hpc_dynamo import launch
from hpc_dynamo.cli.cancel import Cancellation
from hpc_dynamo.cli.render import serving
from hpc_dynamo.cli.render.endpoint import instructions
from hpc_dynamo.cli.render.live import display
from hpc_dynamo.cli.run_watcher import POLL_S, RunWatcher
from hpc_dynamo.launch import LaunchedJob
from hpc_dynamo.messages import Outcome, WorkerReport, WorkerState
from hpc_dynamo.run import Attempt


def follow(
    attempt: Attempt, job: LaunchedJob, console: Console, cancellation: Cancellation | None = None
) -> Outcome:
    """Show an attempt until it ends and return its outcome, also if its job left none.

    `cancellation` stops the job and the job that takes over; None: both were already stopped.
    """
    changes, watcher = _StatusChanges(attempt), RunWatcher(attempt, job)
    if cancellation:
        cancellation.set_stop(lambda: _stop(attempt, job))
    with display(watcher, console) as screen:
        while (outcome := watcher.outcome()) is None:
            if cancellation is None or cancellation.requested:
                watcher.cancel()
            screen.show(changes.lines(), watcher.waiting)
            time.sleep(POLL_S)
        screen.show(changes.lines(), "")
    return outcome


def _stop(attempt: Attempt, job: LaunchedJob) -> None:
    job.stop()
    for other, extra, _, _ in launch.live_attempts(attempt.run):
        if other.number > attempt.number:
            extra.stop()


class _StatusChanges:
    """Changes since the last call: phases, extra jobs, workers, notices and the endpoint."""

    def __init__(self, attempt: Attempt) -> None:
        # The status at the start is not a change.
        self._attempt, self._endpoint, before = attempt, attempt.endpoint(), attempt.status()
        self._phase = before.phase if before else ""
        self._successor = before.successor if before else None
        self._workers = {w.rank: w for w in before.workers} if before else {}
        self._notices = set(before.notices) if before else set[str]()
        self._extra_jobs = {job.number: job.state for job in before.extra_jobs} if before else {}

    def lines(self) -> Iterator[str]:
        status = self._attempt.status()
        if status is not None:
            if status.phase != self._phase:
                self._phase = status.phase
                if status.phase != "ended":  # the outcome is printed after it
                    yield status.phase
            if status.successor and status.successor != self._successor:
                yield serving.successor_line(status.successor)
            self._successor = status.successor
            for job in status.extra_jobs:
                if self._extra_jobs.get(job.number) != job.state:
                    self._extra_jobs[job.number] = job.state
                    yield serving.extra_job_line(job)
            for worker in status.workers:
                yield from self._worker_lines(worker)
            yield from (f"notice: {n}" for n in status.notices if n not in self._notices)
            self._notices.update(status.notices)
        if self._endpoint is None and (endpoint := self._attempt.endpoint()):
            self._endpoint = endpoint
            yield instructions(self._attempt, endpoint)

    def _worker_lines(self, worker: WorkerReport) -> Iterator[str]:
        old = self._workers.get(worker.rank)
        self._workers[worker.rank] = worker
        if old is None or (old.state, old.detail) != (worker.state, worker.detail):
            started = f" after {worker.start_s:.1f} s" if worker.state is WorkerState.ready else ""
            what = f"worker {worker.rank} ({worker.title}) on {worker.host}: {worker.state}"
            yield f"{what}{started} {worker.detail}".strip()
