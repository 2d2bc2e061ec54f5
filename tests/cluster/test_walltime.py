"""Runs that are longer than their jobs.

Slurm ends a job at the earliest one minute after its start, so the three runs run in parallel.
Slurm signals them early, sometimes before Python has started.
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

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MINUTE = ("cluster.slurm.time=1", "cluster.slurm.signal_before_end_s=30")
SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")
STARTED = "bootstrap: 1 agents by "
SMALL = ("topology=aggregated", "topology.nodes=1")

# Requests of a run, and what makes it longer than a minute.
CASES = {
    "three walltimes": (120, SLOW),
    "never requeued": (70, (*SLOW, "cluster.slurm.extra.no-requeue=true")),
    "no answer": (2, ("engine.args.start-delay-s=300",)),
}


class Ended(NamedTuple):
    run: Path
    ids: list[str]
    done: "subprocess.CompletedProcess[str]"


def lives(run: Path) -> int:
    """Return the starts of a run's only attempt, from the bootstraps in its agent's log."""
    return latest(run).agent_log(0).read_text().count(STARTED)


def a_batch(env: Mapping[str, str], folder: Path, name: str) -> Ended:
    requests, words = CASES[name]
    ids = write_prompts(folder / "prompts.jsonl", requests, max_tokens=16)
    argv = ("engine=simulator", "cluster.launcher=slurm", "input=prompts.jsonl", *SMALL, *MINUTE)
    done = hpc_dynamo("batch", *argv, *words, cwd=folder, env=env)
    return Ended(folder / "runs/prompts", ids, done)


def test_runs_that_are_longer_than_their_jobs(cluster: SlurmCluster) -> None:
    with ThreadPoolExecutor(len(CASES)) as pool:
        folders = [Path(tempfile.mkdtemp(dir=cluster.shared)) for _ in CASES]
        runs = pool.map(lambda folder, name: a_batch(cluster.env, folder, name), folders, CASES)
        ended = dict(zip(CASES, runs, strict=True))
    check_three_walltimes(ended["three walltimes"])
    check_never_requeued(ended["never requeued"])
    check_no_answer(ended["no answer"])


def check_three_walltimes(ended: Ended) -> None:
    run, ids, done = ended
    assert done.returncode == 0, done.stdout + done.stderr
    assert lives(run) >= 3
    assert len(Run(run).attempts()) == 1
    each_once(run, ids)


def check_never_requeued(ended: Ended) -> None:
    """Check that the job submitted the next attempt instead."""
    run, ids, done = ended
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, *_ = Run(run).attempts()
    outcome = first.outcome()
    assert outcome is not None
    assert outcome.next_attempt == second.number
    assert first.agent_log(0).read_text().count(STARTED) == 1
    each_once(run, ids)


def check_no_answer(ended: Ended) -> None:
    """Check that a walltime without progress ended the batch."""
    run, _, done = ended
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no request was answered in a whole walltime" in done.stderr
    assert lives(run) == 1
