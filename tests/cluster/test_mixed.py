"""Prefill and decode on different hardware, as one heterogeneous job or as two jobs."""

import subprocess
from pathlib import Path

import pytest

from hpc_dynamo.messages import ExtraJobState, Outcome
from hpc_dynamo.run import Attempt
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import (
    answers,
    each_once,
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

# The head is on `west`, whose nodes come after that of `east` by their names.
HARDWARE = (
    *("engine=simulator", "cluster.launcher=slurm", "input=prompts.jsonl"),
    *("cluster.hardware.west.partition=west", "cluster.hardware.west.nodes=2"),
    "cluster.hardware.east.partition=east",
    *("topology.prefill.workers=2", "topology.prefill.hardware=west"),
    "topology.decode.hardware=east",
)
SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")


def batch(cluster: SlurmCluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = hpc_dynamo("batch", *HARDWARE, *words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def queue(cluster: SlurmCluster) -> str:
    return cluster.slurm("squeue", "--noheader", "--format=%i")


def check_placement(cluster: SlurmCluster, attempt: Attempt) -> None:
    """Check that KV cache moved from prefill to decode workers."""
    status, outcome = attempt.status(), attempt.outcome()
    east, *west = cluster.nodes
    assert status
    assert {w.rank: (w.role, w.host) for w in status.workers} == {
        0: ("prefill", west[0]),
        1: ("prefill", west[1]),
        2: ("decode", east),
    }
    assert outcome
    assert outcome.summary
    assert outcome.summary.kv_bytes > 0


def started(cluster: SlurmCluster, folder: Path, *words: str) -> tuple[Attempt, list[str]]:
    """Start a long batch; return it and the ids of its prompts."""
    ids = write_prompts(folder / "prompts.jsonl", 80, max_tokens=16)
    batch(cluster, folder, "--detach", *SLOW, *words)
    run = folder / "runs/prompts"
    until_results(run, 5)
    return latest(run), ids


def ended(cluster: SlurmCluster, attempt: Attempt) -> Outcome:
    outcome: Outcome = until("the outcome", attempt.outcome, 60)
    until("an empty queue", lambda: not queue(cluster), 60)
    return outcome


def test_batch_as_one_heterogeneous_job(cluster: SlurmCluster, shared_dir: Path) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 40)
    done = batch(cluster, shared_dir, "cluster.slurm.heterogeneous=auto")
    run = shared_dir / "runs/prompts"
    assert list(answers(run / "output.jsonl")) == ids
    attempt, (east, *west) = latest(run), cluster.nodes
    check_placement(cluster, attempt)
    roster, job = attempt.roster(), attempt.job()
    assert roster
    assert [node.host for node in roster.nodes] == [*west, east]
    assert job
    assert f"slurm job {job.job_id}" in done.stdout
    assert not job.hetero_job_ids
    assert "HetJobIdSet" in cluster.slurm("scontrol", "show", "job", job.job_id)


def test_cancelled_component_ends_the_job(cluster: SlurmCluster, shared_dir: Path) -> None:
    attempt, _ = started(cluster, shared_dir, "cluster.slurm.heterogeneous=hetjob")
    job = attempt.job()
    assert job
    cluster.slurm("scancel", f"{job.job_id}+1")
    outcome = ended(cluster, attempt)
    assert outcome.exit_code == 1
    assert "no decode worker is left" in outcome.message
    assert cluster.nodes[0] in outcome.message


def test_batch_as_two_jobs(cluster: SlurmCluster, shared_dir: Path) -> None:
    """The second job is cancelled; the same command then resumes with both."""
    jobs = "cluster.slurm.heterogeneous=jobs"
    attempt, ids = started(cluster, shared_dir, jobs)
    job = attempt.job()
    assert job
    (second,) = job.hetero_job_ids
    shown = hpc_dynamo("status", "name=prompts", cwd=shared_dir, env=cluster.env)
    assert f"extra job {second} running, 1 node(s), decode 2: {cluster.nodes[0]}" in shown.stdout
    cluster.slurm("scancel", second)
    outcome = ended(cluster, attempt)
    assert outcome.exit_code == 1
    assert "no decode worker is left" in outcome.message
    assert cluster.nodes[0] in outcome.message
    batch(cluster, shared_dir, jobs)
    each_once(shared_dir / "runs/prompts", ids)
    attempt = latest(shared_dir / "runs/prompts")
    check_placement(cluster, attempt)
    (extra_job,) = (grown.state() for grown in attempt.extra_jobs())
    assert extra_job
    assert extra_job.state is ExtraJobState.ended
    until("an empty queue", lambda: not queue(cluster), 60)
