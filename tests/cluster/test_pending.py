"""Jobs that wait in Slurm's queue: what their user sees, and how they are cancelled."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.support.runs import HANG_S, hpc_dynamo, until, write_prompts
from tests.support.terminal import ends, on_a_terminal, rest_of

pytestmark = pytest.mark.cluster

BATCH = ("batch", "engine=simulator", "cluster.launcher=slurm", "input=prompts.jsonl")
SOON_S = 60.0  # to cancel a job on a busy machine


@contextmanager
def occupied(cluster: SlurmCluster) -> Iterator[None]:
    """Another user's job occupies all nodes."""
    options = ("--nodes=3", "--exclusive", "--time=30", "--output=/dev/null")
    job = cluster.slurm("sbatch", "--parsable", *options, "--wrap=srun sleep 1000").strip()
    state = ("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    until("the nodes are taken", lambda: "RUNNING" in cluster.slurm(*state))
    try:
        yield
    finally:
        cluster.slurm("scancel", job)
        until("the nodes are free", lambda: job not in cluster.slurm("squeue", "-h", "-o", "%i"))


def queued(cluster: SlurmCluster) -> str:
    return cluster.slurm("squeue", "--noheader", "--format=%i").strip()


def test_job_that_cannot_start_is_reported(cluster: SlurmCluster, shared_dir: Path) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 3)
    # Without the check of the layout, which refuses it before Slurm is asked.
    words = (*BATCH, "--no-preflight", "topology.nodes=5", "topology.decode.workers=4")
    with on_a_terminal(words, shared_dir, cluster.env, columns=80) as batch:
        batch.expect(r"cannot\s+start: ", timeout=HANG_S)
        batch.expect_exact("try: ")
        batch.sendintr()
        pressed = time.monotonic()
        said = rest_of(batch)
        assert ends(batch) == 130
    assert time.monotonic() - pressed < SOON_S
    assert "stopping the job" in said
    assert "cancelled before it started" in said
    assert "error" not in said
    assert queued(cluster) == ""


def test_pending_job_shows_expected_start(cluster: SlurmCluster, shared_dir: Path) -> None:
    """`stop` in another shell cancels it, and both commands report the end."""
    write_prompts(shared_dir / "prompts.jsonl", 3)
    with occupied(cluster), on_a_terminal(BATCH, shared_dir, cluster.env, columns=80) as batch:
        batch.expect(r"nodes have to become\s+free", timeout=HANG_S)
        batch.expect(r"Slurm\s+expects\s+to\s+start\s+it\s+at\s+\d\d:\d\d", timeout=HANG_S)
        began = time.monotonic()
        done = hpc_dynamo("stop", "prompts", cwd=shared_dir, env=cluster.env)
        assert time.monotonic() - began < SOON_S
        assert done.returncode == 0, done.stderr
        assert "the job was cancelled before it started" in done.stdout
        assert "cancelled before it started" in rest_of(batch)
        assert ends(batch) == 1, "somebody else's cancel is a failure of this command"


@pytest.mark.parametrize("verb", ["batch", "serve"])
def test_ctrl_c_cancels_pending_job(verb: str, cluster: SlurmCluster, shared_dir: Path) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 3)
    words = (verb, *BATCH[1:3], *(BATCH[3:] if verb == "batch" else ()))
    with occupied(cluster), on_a_terminal(words, shared_dir, cluster.env, columns=80) as process:
        process.expect(r"nodes have to become\s+free", timeout=HANG_S)
        process.sendintr()
        pressed = time.monotonic()
        said = rest_of(process)
        assert ends(process) == 130
        assert time.monotonic() - pressed < SOON_S
    assert "cancelled before it started" in said
    assert "Traceback" not in said
    assert queued(cluster) == ""
