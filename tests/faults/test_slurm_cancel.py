"""A batch is cancelled, requeued or signalled by Slurm at a random moment."""

from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.faults.test_slurm_jobs import BATCH, command, job_id
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import each_once, until, until_results, write_prompts

pytestmark = [pytest.mark.cluster, pytest.mark.slow_fault]

PACE = ("engine.args.time-scale=10", "batch.concurrency=4")
ONCE = "the same command completes it, each request once"
# Words of scancel; JOB is the job's id.
CANCELS = {
    "`scancel` of a batch (Slurm)": ("JOB",),
    "`scancel --signal=TERM` of a batch's step (Slurm)": ("--signal=TERM", "JOB.0"),
    "`scancel --batch --signal=TERM` of a batch (Slurm)": ("--batch", "--signal=TERM", "JOB"),
    "`scancel --full --signal=KILL` of a batch (Slurm)": ("--full", "--signal=KILL", "JOB"),
    "`scancel --signal=INT` of a batch's step (Slurm)": ("--signal=INT", "JOB.0"),
}


def started(cluster: SlurmCluster, folder: Path, fault: FaultRecorder) -> str:
    """Start a batch; return the id of its job when it has some results."""
    done = command(cluster, folder, *BATCH, *PACE)
    assert done.returncode == 0, done.stdout + done.stderr
    run, wanted = folder / "runs/prompts", fault.chance.randrange(1, 40)
    until_results(run, wanted, 120)
    return job_id(folder)


def queued(cluster: SlurmCluster) -> str:
    return cluster.slurm("squeue", "-h").strip()


@pytest.mark.parametrize("name", CANCELS)
def test_cancelled_batch_is_completed(
    cluster: SlurmCluster, shared_dir: Path, name: str, fault: FaultRecorder
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 80, max_tokens=16)
    job = started(cluster, shared_dir, fault)
    row = fault(name, ONCE)
    cluster.slurm("scancel", *(word.replace("JOB", job) for word in CANCELS[name]))
    until("an empty queue", lambda: not queued(cluster), 100)
    done = command(cluster, shared_dir, *(word for word in BATCH if word != "--detach"))
    assert done.returncode == 0, done.stdout + done.stderr
    row.recovered()
    row.requests(len(ids))
    each_once(shared_dir / "runs/prompts", ids)


REQUEUES = {
    "`scontrol requeue` of a batch (Slurm)": ("scontrol", "requeue", "JOB"),
    "SIGUSR2 to a batch's step (Slurm)": (
        "scancel",
        "--signal=USR2",
        "JOB.0",
    ),
}


@pytest.mark.parametrize("name", REQUEUES)
def test_requeued_batch_completes_itself(
    cluster: SlurmCluster, shared_dir: Path, name: str, fault: FaultRecorder
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 80, max_tokens=16)
    job, run = started(cluster, shared_dir, fault), shared_dir / "runs/prompts"
    row = fault(name, "the batch continues by itself, each request once")
    cluster.slurm(*(word.replace("JOB", job) for word in REQUEUES[name]))
    until("the output", (run / "output.jsonl").exists, 200)
    row.recovered()
    until("an empty queue", lambda: not queued(cluster), 100)
    row.requests(len(ids))
    each_once(run, ids)
