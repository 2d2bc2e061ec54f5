"""Pipe from the head to the task of node 0."""

import os
from collections.abc import Iterator

import pytest

from hpc_dynamo.config import Bootstrap, Cluster
from hpc_dynamo.messages import Outcome
from hpc_dynamo.tasks.head_reports import HeadReports, report_outcome, report_progress

DONE = Outcome(exit_code=0, message="two\nlines")


class Clock:
    """Time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports(clock: Clock) -> Iterator[HeadReports]:
    cluster = Cluster(heartbeat_timeout_s=10.0, bootstrap=Bootstrap(timeout_s=300.0))
    with HeadReports(cluster, clock) as reports:
        yield reports


@pytest.fixture
def write(reports: HeadReports) -> Iterator[int]:
    """Return the head's end of the pipe."""
    yield reports.write_end
    os.close(reports.write_end)


def run_for(reports: HeadReports, clock: Clock, seconds: int) -> str:
    """Check every second for some time; return the last result."""
    said = ""
    for _ in range(seconds):
        clock.now += 1.0
        said = reports.check()
    return said


def test_progress_is_no_outcome(reports: HeadReports, write: int) -> None:
    assert reports.outcome() is None
    for _ in range(3):
        report_progress(write)
    assert reports.outcome() is None


def test_last_complete_outcome_counts(reports: HeadReports, write: int) -> None:
    report_outcome(write, Outcome(exit_code=1))
    report_progress(write)
    report_outcome(write, DONE)
    os.write(write, b'{"exit_co')  # killed meanwhile
    assert reports.outcome() == DONE
    assert reports.outcome() == DONE, "it is kept"


def test_outcome_may_be_longer_than_a_read(reports: HeadReports, write: int) -> None:
    long = Outcome(exit_code=0, message="x" * 50_000)
    report_outcome(write, long)
    assert reports.outcome() == long


def test_head_without_progress_hangs(reports: HeadReports, clock: Clock, write: int) -> None:
    for _ in range(5):
        report_progress(write)
        assert not run_for(reports, clock, 9)
    assert run_for(reports, clock, 3) == "no progress for 11 s"


def test_starting_head_gets_more_time(reports: HeadReports, clock: Clock, write: int) -> None:
    assert not run_for(reports, clock, 300)
    assert run_for(reports, clock, 1)


def test_suspended_job_is_no_hang(reports: HeadReports, clock: Clock, write: int) -> None:
    """Task and head wake up together; the head gets the full time again."""
    report_progress(write)
    assert not run_for(reports, clock, 9)
    clock.now += 1000.0
    assert not run_for(reports, clock, 10)
    assert run_for(reports, clock, 2)


def test_report_to_a_dead_task_is_ignored() -> None:
    read, fd = os.pipe()
    os.close(read)
    report_progress(fd)
    report_outcome(fd, DONE)
    os.close(fd)
