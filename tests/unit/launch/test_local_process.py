"""A local job runs only if the recorded process does: process ids are reused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_dynamo.launch import JobState, local
from hpc_dynamo.launch.local import LocalJob
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.process.identity import process_uid, start_ticks
from hpc_dynamo.run import Attempt
from tests.support.terminal import new_run


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return new_run(tmp_path / "run")


@pytest.fixture
def pid(attempt: Attempt) -> Iterator[int]:
    """Start a process that has the path of the attempt in its command line."""
    argv = [sys.executable, "-c", "import time; time.sleep(100)", str(attempt.submitit)]
    with subprocess.Popen(argv) as process:
        yield process.pid
        process.kill()


def state(attempt: Attempt, pid: int, started: int) -> JobState:
    host = os.uname().nodename
    record = JobRecord(launcher="local", job_id="1", host=host, pid=pid, pid_started=started)
    return LocalJob(record, attempt).state()[0]


def test_recorded_process_runs(attempt: Attempt, pid: int) -> None:
    assert start_ticks(pid)
    assert process_uid(pid) == os.geteuid()
    assert state(attempt, pid, start_ticks(pid)) is JobState.running
    assert state(attempt, pid, 0) is JobState.running  # record of an older version


def test_process_with_another_start_is_another(attempt: Attempt, pid: int) -> None:
    assert state(attempt, pid, start_ticks(pid) - 1) is JobState.ended


def test_process_of_another_user(
    monkeypatch: pytest.MonkeyPatch, attempt: Attempt, pid: int
) -> None:
    monkeypatch.setattr(local, "process_uid", lambda pid: os.geteuid() + 1)
    assert state(attempt, pid, start_ticks(pid)) is JobState.ended


def test_no_process() -> None:
    assert start_ticks(0) == 0
    assert process_uid(0) is None
