"""The main job over three Slurm nodes: one agent each, MPI or TCP bootstrap, NIXL between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_dynamo.run import Attempt, Run
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import (
    answers,
    each_once,
    hpc_dynamo,
    latest,
    results_on_disk,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

THREE_NODES = (
    "engine=simulator",
    "cluster.launcher=slurm",
    "topology.nodes=3",
    "topology.prefill.workers=2",
    "topology.decode.workers=1",
    "input=prompts.jsonl",
)


SILENCE = ("cluster.heartbeat_timeout_s=4", "cluster.reconnect_timeout_s=4")


def batch(cluster: SlurmCluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return hpc_dynamo("batch", *THREE_NODES, *words, cwd=folder, env=cluster.env)


@pytest.mark.parametrize("method", ["mpi", "tcp"])
def test_two_prefill_and_one_decode_worker_over_three_nodes(
    cluster: SlurmCluster, shared_dir: Path, method: str
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 40)
    methods = (f"cluster.bootstrap.method={method}", "cluster.bootstrap.mpi_timeout_s=60")
    done = batch(cluster, shared_dir, *methods)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sacct" not in done.stdout + done.stderr
    run = shared_dir / "runs/prompts"
    assert list(answers(run / "output.jsonl")) == ids
    attempt = latest(run)
    roster = attempt.roster()
    assert roster is not None
    # MPI may crash on a busy machine. TCP then takes over, and the log has the reason.
    logs = "".join(file.read_text() for file in attempt.path.rglob("*.log"))
    fell_back = "by MPI failed, TCP takes over" in logs
    assert roster.method == ("tcp" if fell_back else method)
    assert [node.host for node in roster.nodes] == list(cluster.nodes)
    assert [node.address for node in roster.nodes] == [cluster.address(n) for n in cluster.nodes]
    assert f"by {roster.method}" in attempt.agent_log(1).read_text()
    outcome = attempt.outcome()
    assert outcome is not None
    assert outcome.summary is not None
    assert outcome.summary.kv_bytes > 0, "NIXL moved nothing between the nodes"


def test_auto_takes_slurm_where_it_answers(cluster: SlurmCluster, shared_dir: Path) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 3)
    done = batch(cluster, shared_dir, "cluster.launcher=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slurm job" in done.stdout
    roster = latest(shared_dir / "runs/prompts").roster()
    assert roster is not None
    assert roster.method in ("mpi", "tcp")  # MPI may crash on a busy machine


def _submitted(cluster: SlurmCluster, folder: Path, *words: str) -> tuple[Path, Attempt]:
    done = batch(cluster, folder, "--detach", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "runs/prompts"
    return run, Run(run).attempts()[-1]


def test_cancelled_in_the_middle_and_resubmitted_each_result_is_there_once(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 80, max_tokens=16)
    slow = ("engine.args.time-scale=20", "batch.concurrency=4")
    run, attempt = _submitted(cluster, shared_dir, *slow)
    until_results(run, 5)
    job = attempt.job()
    assert job is not None
    cluster.slurm("scancel", job.job_id)
    until("the job to leave", lambda: job.job_id not in cluster.slurm("squeue", "-h", "-o", "%i"))
    saved = results_on_disk(run)
    assert saved < len(ids), "the job had finished before it was cancelled"
    done = batch(cluster, shared_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    each_once(run, ids)


def test_a_node_that_dies_is_named_and_the_rest_is_finished_later(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 80, max_tokens=16)
    slow = ("engine.args.time-scale=20", "batch.concurrency=4")
    run, attempt = _submitted(cluster, shared_dir, *slow, *SILENCE)
    until_results(run, 5)
    pid = {record.node: record.pid for record in attempt.nodes()}[2]
    subprocess.run(cluster.on(cluster.nodes[2], "kill", "-9", str(pid)), check=True)
    outcome = until("the outcome", attempt.outcome, 120)
    assert outcome.exit_code == 1
    assert "no decode worker is left" in outcome.message
    assert cluster.nodes[2] in outcome.message
    job = attempt.job()
    assert job is not None
    until("the job to leave", lambda: job.job_id not in cluster.slurm("squeue", "-h", "-o", "%i"))
    done = batch(cluster, shared_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(answers(run / "output.jsonl")) == ids


def test_a_rendered_script_can_be_submitted(cluster: SlurmCluster, shared_dir: Path) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 10)
    words = ("engine=simulator", "topology.nodes=3", "topology.prefill.workers=2")
    script = hpc_dynamo("plan", "--sbatch", *words, cwd=shared_dir)
    assert script.returncode == 0, script.stderr
    (shared_dir / "job.sbatch").write_text(script.stdout)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, **cluster.env, "PATH": path}
    submitted = subprocess.run(
        ["sbatch", "--parsable", "--chdir", str(shared_dir), "job.sbatch", "input=prompts.jsonl"],
        cwd=shared_dir, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job_id = submitted.stdout.strip()
    run = shared_dir / "runs/prompts"
    until("the output", (run / "output.jsonl").exists, 90)
    assert list(answers(run / "output.jsonl")) == ids
    until("the job to leave", lambda: job_id not in cluster.slurm("squeue", "-h", "-o", "%i"))


def test_an_unknown_partition_is_refused_with_slurms_words(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 1)
    refused = batch(cluster, shared_dir, "cluster.slurm.partition=nosuch")
    assert refused.returncode == 1
    assert "invalid partition" in refused.stderr
    assert "cluster.slurm.partition" in refused.stderr
