"""File systems of a run that are full or read-only, and inputs that vanish."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.serving.served import Served, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import (
    HANG_S,
    SIMULATOR,
    each_once,
    hpc_dynamo,
    latest,
    results_on_disk,
    until,
    until_results,
    write_prompts,
)
from tests.support.traffic import Traffic

BATCH = ("batch", *SIMULATOR, "input=p.jsonl", "topology=aggregated")
PACE = ("engine.args.time-scale=10", "batch.concurrency=4")
AGGREGATED = ("topology=aggregated", "serve.frontend_processes=1")


@contextmanager
def file_system(folder: Path) -> Iterator[Path]:
    """Mount a file system of 4 MiB as `folder`/runs."""
    if os.geteuid():
        pytest.skip("needs root to mount a file system")
    runs = folder / "runs"
    runs.mkdir(mode=0o700)
    options = "size=4m,mode=0700"
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "none", runs), check=True)
    try:
        yield runs
    finally:
        subprocess.run(("umount", "--lazy", runs), check=True)


def fill(runs: Path) -> Path:
    """Write a file until the file system is full."""
    filler = runs / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def remount(runs: Path, mode: str) -> None:
    subprocess.run(("mount", "-o", f"remount,{mode}", runs), check=True)


@contextmanager
def running(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a batch whose output the block reads."""
    argv = [sys.executable, "-m", "hpc_dynamo", *BATCH, *words]
    out = subprocess.PIPE
    with subprocess.Popen(argv, cwd=folder, stdout=out, stderr=out, text=True) as command:
        try:
            yield command
        finally:
            command.send_signal(signal.SIGTERM)


@pytest.mark.slow_fault  # CI runs tests/integration/cli/test_file_errors.py
def test_batch_on_full_disk_is_completed_later(tmp_path: Path, fault: FaultRecorder) -> None:
    ids, run = write_prompts(tmp_path / "p.jsonl", 80), tmp_path / "runs/p"
    with file_system(tmp_path) as runs:
        with running(tmp_path, *PACE) as command:
            until_results(run, fault.chance.randrange(1, 20))
            promise = "it ends and names the cause; the same command completes it"
            row = fault("disk full in a batch", promise)
            filler = fill(runs)
            _, error = command.communicate(timeout=HANG_S)
        assert command.returncode == 1
        assert "no space left on the device" in error
        assert "Traceback" not in error
        filler.unlink()
        done = hpc_dynamo(*BATCH, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        row.recovered()
        row.requests(len(ids))
        each_once(run, ids)


@pytest.mark.slow_fault
def test_batch_on_read_only_disk_is_completed_later(tmp_path: Path, fault: FaultRecorder) -> None:
    ids, run = write_prompts(tmp_path / "p.jsonl", 80), tmp_path / "runs/p"
    with file_system(tmp_path) as runs:
        with running(tmp_path, *PACE) as command:
            until_results(run, fault.chance.randrange(1, 20))
            row = fault("run folder read-only for the second try of a batch", "as for a full disk")
            command.send_signal(signal.SIGINT)
            command.communicate(timeout=HANG_S)
        job = Served(latest(run))
        until("the end of the job", lambda: not job.processes())
        remount(runs, "ro")
        refused = hpc_dynamo(*BATCH, cwd=tmp_path)
        assert refused.returncode
        assert "Traceback" not in refused.stderr
        remount(runs, "rw")
        done = hpc_dynamo(*BATCH, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        row.requests(len(ids))
        each_once(run, ids)


@pytest.mark.slow_fault
def test_endpoint_on_full_disk_serves(tmp_path: Path, fault: FaultRecorder) -> None:
    with file_system(tmp_path) as runs, serving(tmp_path, *AGGREGATED) as served:
        row = fault("disk full while serving", "requests continue")
        filler = fill(runs)
        with Traffic(served, fault.chance) as traffic:
            traffic.wait_for(30)
        row.requests(traffic.sent, traffic.lost)
        assert not traffic.lost, traffic.errors()
        before = file_time(served)
        filler.unlink()
        row.injected()
        until("a new status", lambda: file_time(served) > before)
        row.recovered()
        assert "Traceback" not in served.attempt.agent_log(0).read_text()


def file_time(served: Served) -> float:
    return (served.attempt.path / "status.json").stat().st_mtime


@pytest.mark.slow_fault
def test_input_that_vanishes_or_changes_in_a_running_batch(
    tmp_path: Path, fault: FaultRecorder
) -> None:
    file, run = tmp_path / "p.jsonl", tmp_path / "runs/p"
    ids = write_prompts(file, 80)
    with running(tmp_path, *PACE) as command:
        until_results(run, fault.chance.randrange(1, 20))
        row = fault("input deleted while its batch runs", "it continues")
        file.unlink()
        output, error = command.communicate(timeout=HANG_S)
    assert command.returncode == 0, output + error
    row.requests(len(ids))
    each_once(run, ids)


@pytest.mark.slow_fault
def test_input_edited_in_place_in_a_running_batch(tmp_path: Path, fault: FaultRecorder) -> None:
    file, run = tmp_path / "p.jsonl", tmp_path / "runs/p"
    write_prompts(file, 80)
    with running(tmp_path, *PACE) as command:
        until_results(run, fault.chance.randrange(1, 20))
        fault("input edited in place while its batch runs", "it ends and names the file")
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
        _, error = command.communicate(timeout=HANG_S)
    assert command.returncode
    assert str(file) in error, error
    assert "Traceback" not in error


@pytest.mark.slow_fault
def test_second_batch_of_one_name_is_refused(tmp_path: Path, fault: FaultRecorder) -> None:
    ids, run = write_prompts(tmp_path / "p.jsonl", 60), tmp_path / "runs/p"
    with running(tmp_path, *PACE) as command:
        until_results(run, fault.chance.randrange(1, 20))
        row = fault("second batch of one name while the first runs", "refused")
        second = hpc_dynamo(*BATCH, cwd=tmp_path)
        assert second.returncode
        assert "is in use" in second.stderr
        output, error = command.communicate(timeout=HANG_S)
    assert command.returncode == 0, output + error
    row.requests(len(ids))
    each_once(run, ids)


@pytest.mark.slow_fault
def test_two_batches_of_one_name_started_at_once(tmp_path: Path, fault: FaultRecorder) -> None:
    ids, run = write_prompts(tmp_path / "p.jsonl", 20), tmp_path / "runs/p"
    row = fault("two batches of one name started at once", "one is refused")
    with running(tmp_path) as one, running(tmp_path) as two:
        errors = [command.communicate(timeout=HANG_S)[1] for command in (one, two)]
    codes = sorted(command.returncode for command in (one, two))
    assert codes[0] == 0, errors
    assert results_on_disk(run) == len(ids)
    row.requests(len(ids))
    each_once(run, ids)
