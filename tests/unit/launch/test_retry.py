"""Another job after nodes failed at the start: when, and without which nodes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Cluster, Config
from hpc_dynamo.launch import retry
from hpc_dynamo.launch.excluded_nodes import without_nodes
from hpc_dynamo.messages import JobRecord, Outcome
from hpc_dynamo.run import Run, write_json
from hpc_dynamo.topology import Plan, plan

TWO_NODES = Plan(2, 0, ())


def test_failed_nodes_are_added_to_the_excluded_ones() -> None:
    config = without_nodes(Config(), "n2")
    assert config.cluster.slurm.extra["exclude"] == "n2"
    assert without_nodes(config, "n3,n4").cluster.slurm.extra["exclude"] == "n2,n3,n4"


def test_fault_on_all_nodes_ends_the_run(run: Run) -> None:
    attempt = run.new_attempt(Config(), TWO_NODES)
    everywhere = Outcome(exit_code=1, message="no model", bad_hosts=("n1", "n2"))
    assert retry.submit_without(attempt, everywhere) == everywhere


def test_number_of_jobs_is_limited(run: Run) -> None:
    config = replace(Config(), cluster=Cluster(tries=2))
    first, second = (run.new_attempt(config, TWO_NODES) for _ in range(2))
    bad = Outcome(exit_code=1, message="bad", bad_hosts=("n1",))
    write_json(first.outcome_file, bad)
    assert retry.submit_without(second, bad) == bad


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of programs that are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def submit_without_n1(run: Run, sbatch: Path, script: str) -> Outcome:
    """Submit the second job of a run, with a script in place of sbatch."""
    sbatch.write_text(f"#!/bin/sh\n{script}\n")
    sbatch.chmod(0o755)
    config = compose(["engine=simulator", "topology=aggregated", "topology.nodes=2"])
    attempt = run.new_attempt(config, plan(config))
    write_json(attempt.job_file, JobRecord(launcher="slurm", job_id="42"))
    bad = Outcome(exit_code=1, message="n1 has no /dev/shm", bad_hosts=("n1",))
    return retry.submit_without(attempt, bad)


def test_submission_error_is_part_of_the_outcome(run: Run, bin_folder: Path) -> None:
    script = "echo sbatch: error: invalid partition >&2; exit 1"
    outcome = submit_without_n1(run, bin_folder / "sbatch", script)
    reason = "the next job could not be submitted: sbatch refused the job: invalid partition"
    assert outcome.message.splitlines()[0] == f"n1 has no /dev/shm; {reason}"
    assert outcome.next_attempt == 0


def test_next_job_excludes_the_failed_nodes(run: Run, bin_folder: Path) -> None:
    outcome = submit_without_n1(run, bin_folder / "sbatch", "echo Submitted batch job 43")
    assert outcome.next_attempt == 2, outcome.message
    assert outcome.message == "n1 has no /dev/shm\nattempt 2 starts without n1"
    after = run.attempt(2)
    (submission,) = after.submitit.glob("43_submission.sh")
    assert "#SBATCH --exclude=n1\n" in submission.read_text()
    job = after.job()
    assert job is not None
    assert job.job_id == "43"
