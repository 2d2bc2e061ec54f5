"""Nodes of a batch that Slurm loses or that are drained, with and without a spare node."""

from pathlib import Path

import pytest

from tests.cluster.cluster import SlurmCluster
from tests.cluster.node_failures import FAILURES, HARMLESS, job_field, reboot, resume
from tests.faults.test_slurm_jobs import BATCH, SLOW, command, job_id
from tests.support.fault_rows import FaultMeasurement, FaultRecorder
from tests.support.runs import (
    each_once,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

SHORT = ("cluster.heartbeat_timeout_s=4", "cluster.reconnect_timeout_s=6")
SPARE = (*BATCH, *SLOW, *SHORT, "cluster.spare_nodes=1")
REQUESTS = 60

# The others run by `make faults`.
SHORT_SAMPLE = ("powered off",)


def cases(names: list[str]) -> list[object]:
    return [
        name if name in SHORT_SAMPLE else pytest.param(name, marks=pytest.mark.slow_fault)
        for name in names
    ]


def begin(cluster: SlurmCluster, folder: Path, *words: str) -> tuple[list[str], Path]:
    """Start a batch and wait for its first results. Return its ids and its run folder."""
    ids, run = (
        write_prompts(folder / "prompts.jsonl", REQUESTS, max_tokens=16),
        folder / "runs/prompts",
    )
    started = command(cluster, folder, *words)
    assert started.returncode == 0, started.stderr
    until_results(run, 5, 120)
    return ids, run


@pytest.mark.parametrize("how", cases(["set down", "powered off", "drained", "slurmd restarted"]))
def test_batch_with_a_spare_node_ends_as_one_job(
    healthy: SlurmCluster, shared_dir: Path, how: str, fault: FaultRecorder
) -> None:
    ids, run = begin(healthy, shared_dir, *SPARE)
    job, spare = job_id(shared_dir), healthy.nodes[2]
    promise = "nothing happens" if how in HARMLESS else "its workers move to the spare node"
    row = fault(f"node {how}, batch with a spare node (Slurm)", promise)
    FAILURES[how](healthy, healthy.nodes[1])
    if how not in HARMLESS:
        until("a worker on the spare node", lambda: spare in hosts_of_ready(run), 60)
        row.recovered()
    ended(run, ids, row)
    assert (spare in hosts_of_all(run)) is (how not in HARMLESS)
    assert job_field(healthy, job, "Restarts") == "0"
    until("the end of the job", lambda: job_field(healthy, job, "JobState") == "COMPLETED", 90)


REQUEUED = [("set down", 0), ("rebooted", 0), ("rebooted", 1)]


@pytest.mark.slow_fault
@pytest.mark.parametrize(("how", "spare_nodes"), REQUEUED)
def test_batch_is_requeued_after_the_loss_of_a_node(
    healthy: SlurmCluster, shared_dir: Path, how: str, spare_nodes: int, fault: FaultRecorder
) -> None:
    """After a reboot within SlurmdTimeout srun ends the step, also with --no-kill."""
    spare = f"cluster.spare_nodes={spare_nodes}"
    ids, run = begin(healthy, shared_dir, *BATCH, *SLOW, *SHORT, spare)
    job = job_id(shared_dir)
    fault_text = f"node {how}, batch with {spare_nodes} spare nodes (Slurm)"
    row = fault(fault_text, "requeued, nothing runs twice")
    FAILURES[how](healthy, healthy.nodes[1])
    until("the requeue", lambda: job_field(healthy, job, "Restarts") == "1", 120)
    resume(healthy, healthy.nodes[1])
    until("the output", (run / "output.jsonl").exists, 200)
    row.recovered()
    each_once(run, ids)
    row.requests(len(ids))


@pytest.mark.slow_fault
def test_head_node_powered_off_with_a_spare_node(
    healthy: SlurmCluster, shared_dir: Path, fault: FaultRecorder
) -> None:
    """With --no-kill Slurm does not end the job, which has lost its batch script."""
    ids, run = begin(healthy, shared_dir, *SPARE)
    job, head = job_id(shared_dir), healthy.nodes[0]
    row = fault("node of the head rebooted, batch with a spare node (Slurm)", "requeued")
    reboot(healthy, head)
    until("the requeue", lambda: job_field(healthy, job, "Restarts") == "1", 150)
    until("the output", (run / "output.jsonl").exists, 200)
    row.recovered()
    each_once(run, ids)
    row.requests(len(ids))


def ended(run: Path, ids: list[str], row: FaultMeasurement) -> None:
    outcome = until("the end", latest(run).outcome, 120)
    assert outcome.exit_code == 0, outcome
    each_once(run, ids)
    row.requests(len(ids))


def hosts_of_ready(run: Path) -> set[str]:
    status = latest(run).status()
    return {w.host for w in status.workers if w.state == "ready"} if status else set()


def hosts_of_all(run: Path) -> set[str]:
    status = latest(run).status()
    return {w.host for w in status.workers} if status else set()
