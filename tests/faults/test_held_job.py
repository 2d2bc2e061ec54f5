"""Files that change while a job waits in Slurm's queue."""

import os
import pickle
from pathlib import Path

import pytest

from hpc_dynamo import launch
from hpc_dynamo.launch import JobState
from hpc_dynamo.run import Attempt
from tests.cluster.slurm import SlurmCluster
from tests.faults.test_other_users import ATTACKER, Payload
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import hpc_dynamo, latest, until, write_prompts

pytestmark = pytest.mark.cluster

BATCH = ("batch", "--detach", "engine=simulator", "cluster.launcher=slurm", "topology=aggregated")


def held_job(cluster: SlurmCluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """Return the attempt of a batch whose job waits until it is released."""
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    write_prompts(folder / "p.jsonl", 4)
    words = ("input=p.jsonl", "cluster.slurm.extra.hold=true")
    done = hpc_dynamo(*BATCH, *words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    return latest(folder / "runs/p")


def release(attempt: Attempt) -> None:
    """Let the job run to its end."""
    job = launch.find_job(attempt)
    record = attempt.job()
    assert job
    assert record
    launch.slurm.slurm_command("scontrol", "release", record.job_id)
    until("the end of the job", lambda: job.state()[0] is JobState.ended)


def test_pickle_of_another_user_is_not_loaded_on_the_node(
    cluster: SlurmCluster, shared_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: FaultRecorder
) -> None:
    fault("job files replaced by another user while the job is pending (Slurm)", "refused")
    attempt, proof = held_job(cluster, shared_dir, monkeypatch), shared_dir / "proof"
    record = attempt.job()
    assert record
    attempt.submitit.rename(attempt.path / "aside")
    attempt.submitit.mkdir()
    planted = attempt.submitit / f"{record.job_id}_submitted.pkl"
    planted.write_bytes(pickle.dumps(Payload(proof)))
    for path in (attempt.submitit, planted):
        os.chown(path, ATTACKER, ATTACKER)
    release(attempt)
    log = attempt.submitit / f"{record.job_id}_0_log.err"
    said = until("the log", lambda: log.exists() and log.read_text())
    assert f"error: {attempt.submitit}: it belongs to another user (owner {ATTACKER}" in said
    assert not proof.exists()
    assert attempt.outcome() is None


def test_changed_input_is_refused_by_the_job(
    cluster: SlurmCluster, shared_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: FaultRecorder
) -> None:
    fault("input edited while its job is pending (Slurm)", "refused, both fingerprints named")
    attempt, file = held_job(cluster, shared_dir, monkeypatch), shared_dir / "p.jsonl"
    file.write_text(file.read_text().replace("number 3", "number 4"))
    release(attempt)
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 3
    assert f"{file} was changed after the job was submitted: its SHA-256 is " in outcome.message
