"""Runs that are longer than their jobs."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpc_dynamo.run import Run
from tests.cluster.slurm import SlurmCluster
from tests.runs import each_once, hpc_dynamo, latest, write_prompts

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)]

MINUTE = ("cluster.slurm.time=1", "cluster.slurm.signal_before_end_s=15")
SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")
SMALL = ("topology=aggregated", "topology.nodes=1")


def lives(run: Path) -> int:
    """Of a run's only attempt, by the bootstraps that its agent logged."""
    return latest(run).agent_log(0).read_text().count("bootstrap: 1 agents by ")


def a_batch(env: Mapping[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = ("batch", "engine=simulator", "cluster.launcher=slurm", "input=prompts.jsonl")
    return hpc_dynamo(*argv, *SMALL, *MINUTE, *words, cwd=folder, env=env, timeout_s=500)


def test_a_batch_of_three_walltimes_finishes_by_itself(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 200, max_tokens=16)
    done = a_batch(cluster.env, shared_dir, *SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    run = shared_dir / "runs/prompts"
    assert lives(run) >= 3
    assert len(Run(run).attempts()) == 1
    each_once(run, ids)


def test_a_job_that_cannot_be_requeued_has_a_successor(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 100, max_tokens=16)
    done = a_batch({**cluster.env, "SBATCH_NO_REQUEUE": "1"}, shared_dir, *SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    run = shared_dir / "runs/prompts"
    first, second = Run(run).attempts()
    outcome = first.outcome()
    assert outcome is not None
    assert (outcome.successor, lives(run)) == (second.number, 1)
    each_once(run, ids)


def test_a_walltime_that_brings_nothing_is_the_last(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 2)
    done = a_batch(cluster.env, shared_dir, "engine.args.start-delay-s=300")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no request was answered in a whole walltime" in done.stderr
    assert lives(shared_dir / "runs/prompts") == 1
