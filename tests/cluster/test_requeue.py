"""A job that Slurm restarts executes its script again: finished answers must survive that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_dynamo.run import Run
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import (
    each_once,
    hpc_dynamo,
    until,
    until_results,
    write_prompts,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WORDS = ("engine=simulator", "topology=aggregated", "topology.nodes=1", "input=prompts.jsonl")
SLOW = ("engine.args.time-scale=10", "batch.concurrency=4")


def submit_script(cluster: SlurmCluster, folder: Path, *words: str) -> str:
    """Submit what `plan --sbatch` prints; return the job's id."""
    script = hpc_dynamo("plan", "--sbatch", *WORDS, *words, cwd=folder)
    assert script.returncode == 0, script.stderr
    (folder / "job.sbatch").write_text(script.stdout)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    argv = ["sbatch", "--parsable", "--requeue", "--chdir", str(folder), "job.sbatch"]
    env = {**os.environ, **cluster.env, "PATH": path}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_requeued_script_with_overwrite_keeps_answers(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 70, max_tokens=16)
    run, runs = shared_dir / "runs/prompts", shared_dir / "runs"
    former = hpc_dynamo("batch", *WORDS, "cluster.launcher=local", cwd=shared_dir)
    assert former.returncode == 0, former.stderr
    job = submit_script(cluster, shared_dir, *SLOW, "overwrite=true")
    until("former results set aside", (runs / "prompts.old-1").exists, 90)
    until_results(run, 10, 90)
    cluster.slurm("scontrol", "requeue", job)
    until("the second life", lambda: len(Run(run).attempts()) == 2, 150)
    until("the output", (run / "output.jsonl").exists, 150)
    until("the job to leave", lambda: job not in cluster.slurm("squeue", "-h", "-o", "%i"), 90)
    assert (run / "parts/1.jsonl").read_bytes().count(b"\n") >= 10
    each_once(run, ids)
    each_once(runs / "prompts.old-1", ids)
    assert sorted(p.name for p in runs.iterdir()) == ["prompts", "prompts.old-1"]
    (log_file,) = shared_dir.glob(f"*-{job}.log")
    log = log_file.read_text()
    assert f"{len(ids)} earlier results" in log
    assert "overwrite=true took effect when this job first ran" in log
