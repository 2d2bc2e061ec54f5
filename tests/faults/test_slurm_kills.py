"""Deaths in a row: whatever is killed and whenever, each result is there once in the end."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hpc_dynamo.run import Attempt
from tests.cluster.slurm import SlurmCluster
from tests.cluster.test_batch import THREE_NODES, batch
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import answers, hpc_dynamo, latest, results_on_disk, until, write_prompts

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SLOW = (
    "engine.args.time-scale=10",
    "batch.concurrency=6",
    "cluster.heartbeat_timeout_s=4",
    "cluster.reconnect_timeout_s=4",
)

ONCE = "the same command completes it, each request once"
Kill = Callable[[SlurmCluster, Attempt], None]


def has_results(run: Path, wanted: int) -> bool:
    return results_on_disk(run) >= wanted


def the_job(cluster: SlurmCluster, attempt: Attempt) -> None:
    job = attempt.job()
    assert job is not None
    cluster.slurm("scancel", "--signal=KILL", "--full", job.job_id)


def an_agent(node: int) -> Kill:
    """Agent 0 is the head. Its pid is of its node's own namespace."""

    def kill(cluster: SlurmCluster, attempt: Attempt) -> None:
        record = {r.node: r for r in attempt.nodes()}[node]
        argv = cluster.on(cluster.nodes[node], "kill", "-9", str(record.pid))
        subprocess.run(argv, check=True)

    return kill


KILLS: dict[str, Kill] = {"job": the_job, "head": an_agent(0), "agent": an_agent(2)}


@pytest.mark.parametrize("rounds", [2, pytest.param(5, marks=pytest.mark.slow_fault)])
def test_kills_at_random_moments(
    cluster: SlurmCluster, shared_dir: Path, rounds: int, fault: FaultRecorder
) -> None:
    """Each round has one kill of each kind."""
    ids = write_prompts(shared_dir / "prompts.jsonl", 110 * rounds, max_tokens=16)
    run = shared_dir / "runs/prompts"
    chance = fault.chance
    row = fault(f"{3 * rounds} kills of job, head and an agent of a batch (Slurm)", ONCE)
    names = sorted(KILLS) * rounds
    chance.shuffle(names)
    for death, name in enumerate(names):
        wanted = results_on_disk(run) + chance.randrange(1, 13)
        started = batch(cluster, shared_dir, "--detach", *SLOW)
        assert started.returncode == 0, f"{death} {name}: {started.stdout}{started.stderr}"
        until("results", partial(has_results, run, wanted))
        KILLS[name](cluster, latest(run))
        until("an empty queue", lambda: not cluster.slurm("squeue", "-h").strip())
    saved = results_on_disk(run)
    assert saved < len(ids), "all was done before the last death"
    done = batch(cluster, shared_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results_on_disk(run) == len(ids), "a finished request was run again"
    found = answers(run / "output.jsonl")
    assert list(found) == ids
    row.requests(len(ids))
    undisturbed = ("topology=aggregated", "topology.nodes=1", "name=all")
    words = [w for w in THREE_NODES if "workers" not in w and "nodes" not in w]
    reference = hpc_dynamo("batch", *words, *undisturbed, cwd=shared_dir, env=cluster.env)
    assert reference.returncode == 0, reference.stdout + reference.stderr
    assert found == answers(shared_dir / "runs/all/output.jsonl")
