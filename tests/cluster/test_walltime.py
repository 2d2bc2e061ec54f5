"""Runs that are longer than their jobs.

Slurm ends a job at the earliest one minute after its start, so the three runs run in parallel.
Each job stops dispatching requests after half a minute.
"""

import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from hpc_dynamo.run import Run
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import each_once, hpc_dynamo, latest, write_prompts

pytestmark = [
    *(pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)),
    pytest.mark.xdist_group("walltime"),  # the tests share their set-up
]

MINUTE = ("cluster.slurm.time=1", "cluster.slurm.signal_before_end_s=30")
SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")
SMALL = ("topology=aggregated", "topology.nodes=1")

# Requests of a run, and what makes it longer than a minute.
CASES = {
    "three walltimes": (120, SLOW, {}),
    "never requeued": (70, SLOW, {"SBATCH_NO_REQUEUE": "1"}),
    "no answer": (2, ("engine.args.start-delay-s=300",), {}),
}


class Ended(NamedTuple):
    run: Path
    ids: list[str]
    done: "subprocess.CompletedProcess[str]"


def lives(run: Path) -> int:
    """Return the starts of a run's only attempt, from the bootstraps in its agent's log."""
    return latest(run).agent_log(0).read_text().count("bootstrap: 1 agents by ")


def a_batch(env: Mapping[str, str], folder: Path, name: str) -> Ended:
    requests, words, own = CASES[name]
    ids = write_prompts(folder / "prompts.jsonl", requests, max_tokens=16)
    argv = ("engine=simulator", "cluster.launcher=slurm", "input=prompts.jsonl", *SMALL, *MINUTE)
    done = hpc_dynamo("batch", *argv, *words, cwd=folder, env={**env, **own}, timeout_s=500)
    return Ended(folder / "runs/prompts", ids, done)


@pytest.fixture(scope="module")
def ended(cluster: SlurmCluster) -> dict[str, Ended]:
    with ThreadPoolExecutor(len(CASES)) as pool:
        folders = [Path(tempfile.mkdtemp(dir=cluster.shared)) for _ in CASES]
        runs = pool.map(lambda folder, name: a_batch(cluster.env, folder, name), folders, CASES)
        return dict(zip(CASES, runs, strict=True))


def test_batch_over_three_walltimes_finishes(ended: dict[str, Ended]) -> None:
    run, ids, done = ended["three walltimes"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert lives(run) >= 3
    assert len(Run(run).attempts()) == 1
    each_once(run, ids)


def test_job_without_requeue_submits_next_attempt(ended: dict[str, Ended]) -> None:
    run, ids, done = ended["never requeued"]
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, *_ = Run(run).attempts()
    outcome = first.outcome()
    assert outcome is not None
    assert (outcome.next_attempt, lives(run)) == (second.number, 1)
    each_once(run, ids)


def test_walltime_without_progress_ends_batch(ended: dict[str, Ended]) -> None:
    run, _, done = ended["no answer"]
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no request was answered in a whole walltime" in done.stderr
    assert lives(run) == 1
