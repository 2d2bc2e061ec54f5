"""Faults of Slurm itself: lost nodes, requeued jobs, and what dependent jobs see of the end."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.node_failures import job_field, resume
from tests.cluster.slurm import SlurmCluster
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import (
    each_once,
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

BATCH = (
    *("batch", "engine=simulator", "cluster.launcher=slurm", "--detach", "input=prompts.jsonl"),
    *("topology=aggregated", "topology.nodes=2", "topology.aggregated.workers=2"),
)
SLOW = ("engine.args.time-scale=30", "batch.concurrency=4")


def command(cluster: SlurmCluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return hpc_dynamo(*words, cwd=folder, env=cluster.env)


def job_id(folder: Path) -> str:
    record = latest(folder / "runs/prompts").job()
    assert record is not None
    return record.job_id


@pytest.fixture
def lost_node(cluster: SlurmCluster) -> Iterator[str]:
    """Return the name of a node that a test may set down; it is resumed at the end."""
    node = cluster.nodes[1]
    yield node
    resume(cluster, node)
    until("all nodes idle", lambda: cluster.states() == {"idle"}, 60)


def test_only_one_job_works_on_a_run_after_a_node_is_set_down(
    cluster: SlurmCluster, shared_dir: Path, lost_node: str, fault: FaultRecorder
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 60, max_tokens=16)
    run = shared_dir / "runs/prompts"
    assert command(cluster, shared_dir, *BATCH, *SLOW).returncode == 0
    until_results(run, 5, 120)
    job = job_id(shared_dir)
    down = ("scontrol", "update", f"NodeName={lost_node}", "State=DOWN", "Reason=test")
    row = fault("node of a batch set down (Slurm)", "one job continues, each result once")
    cluster.slurm(*down)
    until("the requeue", lambda: job_field(cluster, job, "JobState") == "PENDING", 60)
    cluster.slurm("scontrol", "hold", job)  # Slurm may return the node to service by itself
    until("an outcome of the first execution", latest(run).outcome, 60)

    status = command(cluster, shared_dir, "status", "prompts", "--once")
    assert "attempt 1: pending" in status.stdout
    again = command(cluster, shared_dir, *BATCH)
    assert again.returncode != 0
    assert "is in use: attempt 1 is pending" in again.stderr

    resume(cluster, lost_node)
    cluster.slurm("scontrol", "release", job)
    row.injected()
    until("the output", (run / "output.jsonl").exists, 200)
    row.recovered()
    row.requests(len(ids))
    each_once(run, ids)
    until("the end", lambda: job_field(cluster, job, "JobState") == "COMPLETED", 60)
    assert job_field(cluster, job, "Restarts") == "1"


def test_stop_cancels_a_job_that_slurm_has_requeued(
    cluster: SlurmCluster, shared_dir: Path, lost_node: str, fault: FaultRecorder
) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 60, max_tokens=16)
    assert command(cluster, shared_dir, *BATCH, *SLOW).returncode == 0
    run = shared_dir / "runs/prompts"
    until_results(run, 2, 120)
    job = job_id(shared_dir)
    fault("`scontrol requeue`, then `hpc-dynamo stop` (Slurm)", "the pending job is cancelled")
    cluster.slurm("scontrol", "requeue", job)
    until("the requeue", lambda: job_field(cluster, job, "JobState") == "PENDING", 60)
    stopped = command(cluster, shared_dir, "stop", "prompts")
    assert stopped.returncode == 0, stopped.stderr
    assert "is not running" not in stopped.stdout
    # FAILED, if the first execution was still ending.
    assert job_field(cluster, job, "JobState") in ("CANCELLED", "FAILED")


def test_exit_codes_reach_dependent_jobs(
    cluster: SlurmCluster, shared_dir: Path, fault: FaultRecorder
) -> None:
    """A failed batch does not start a job that waits for its success; a stopped endpoint does."""
    write_prompts(shared_dir / "prompts.jsonl", 3, max_tokens=2)
    fault("engines that do not start (Slurm)", "the job fails, `afterok` sees it")
    failing = command(cluster, shared_dir, *BATCH, "engine.args.fail-start=true")
    assert failing.returncode == 0, failing.stderr
    job = job_id(shared_dir)
    until("the failure", lambda: job_field(cluster, job, "JobState") == "FAILED", 100)
    assert job_field(cluster, job, "ExitCode") != "0:0"

    words = (
        "engine=simulator",
        "cluster.launcher=slurm",
        "--detach",
        "topology=aggregated",
        "topology.nodes=1",
        "name=served",
    )
    served = command(cluster, shared_dir, "serve", *words)
    assert served.returncode == 0, served.stderr
    attempt = latest(shared_dir / "runs/served")
    record = attempt.job()
    assert record is not None
    after = ("sbatch", "--parsable", f"--dependency=afterok:{record.job_id}", "--wrap=true")
    follower = cluster.slurm(*after, "--output=/dev/null").strip()
    until("an endpoint", lambda: attempt.endpoint() or attempt.outcome(), 100)
    assert attempt.endpoint() is not None
    assert command(cluster, shared_dir, "stop", "served").returncode == 0
    until("the end", lambda: job_field(cluster, record.job_id, "JobState") == "COMPLETED", 60)
    until("the follower", lambda: job_field(cluster, follower, "JobState") == "COMPLETED", 60)


@contextmanager
def small_shared_memory(cluster: SlurmCluster, node: str) -> Iterator[None]:
    """Let a node fail the checks before a start while the context is open."""
    resize = ("mount", "-o", "remount,size=1m", "/dev/shm")
    subprocess.run(cluster.on(node, *resize), check=True)
    try:
        yield
    finally:
        subprocess.run(cluster.on(node, *resize[:2], "remount,size=50%", "/dev/shm"), check=True)


@pytest.mark.parametrize("spare_nodes", [0, 1])
def test_bad_node_does_not_cost_the_run(
    cluster: SlurmCluster, shared_dir: Path, fault: FaultRecorder, spare_nodes: int
) -> None:
    """A spare node runs the workers of a node that fails the checks before the start, or else the
    next job excludes that node."""
    ids = write_prompts(shared_dir / "prompts.jsonl", 10, max_tokens=2)
    good, bad, last = cluster.nodes
    promises = ("the next attempt excludes the node", "its workers start on a spare node")
    row = fault("`/dev/shm` of one node too small (Slurm)", promises[spare_nodes])
    with small_shared_memory(cluster, bad):
        words = [word for word in BATCH if word != "--detach"]
        done = command(cluster, shared_dir, *words, f"cluster.spare_nodes={spare_nodes}")
    row.recovered()
    row.requests(len(ids))
    assert done.returncode == 0, done.stdout + done.stderr
    run = shared_dir / "runs/prompts"
    each_once(run, ids)
    status = latest(run).status()
    assert status
    assert [worker.host for worker in status.workers] == [good, last]
    assert latest(run).number == 2 - spare_nodes
    assert (f"attempt 2 starts without {bad}" in done.stdout) is not bool(spare_nodes)


def test_fault_on_all_nodes_ends_the_job(
    cluster: SlurmCluster, shared_dir: Path, fault: FaultRecorder
) -> None:
    row = fault("`/dev/shm` of all nodes too small (Slurm)", "the job ends at once")
    write_prompts(shared_dir / "prompts.jsonl", 10, max_tokens=2)
    with ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(small_shared_memory(cluster, node))
        words = [word for word in BATCH if word != "--detach"]
        done = command(cluster, shared_dir, *words, "cluster.spare_nodes=1")
    row.recovered()
    assert done.returncode != 0
    assert "the nodes are not fit for this run" in done.stdout + done.stderr
    assert latest(shared_dir / "runs/prompts").number == 1
