"""The node of the head is lost: Slurm restarts the job on another one."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from hpc_dynamo.run import Attempt, Run
from tests.cluster.namespaces import node_pid
from tests.cluster.slurm import ClusterError, SlurmCluster
from tests.integration.serving.served import HEAD
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import answers as answers_of
from tests.support.runs import (
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

WORDS = ("engine=simulator", "cluster.launcher=slurm", "--detach", "topology=aggregated")
ONE_NODE = ("topology.nodes=1", "cluster.preflight=false")


def start(cluster: SlurmCluster, folder: Path, *words: str) -> None:
    done = hpc_dynamo(*words, *WORDS, *ONE_NODE, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr


def head_host(attempt: Attempt, restart_count: int) -> str:
    """Return the node of the head of an execution of the job; empty until it has started."""
    roster = attempt.roster()
    return roster.nodes[0].host if roster and roster.restart_count == restart_count else ""


def runs(cluster: SlurmCluster, node: str, words: str) -> bool:
    """Return True if the command line of a process on a node contains `words`."""
    argv = cluster.on(node, "pgrep", "-f", words)
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def set_down(cluster: SlurmCluster, node: str) -> None:
    cluster.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")


@pytest.fixture
def repaired(cluster: SlurmCluster) -> Iterator[None]:
    """Bring all nodes back at the end."""
    yield
    for node in cluster.nodes:
        if node_pid(cluster.spec, node) is None:
            cluster.boot(node)
        elif not runs(cluster, node, "slurmd"):
            cluster.revive(node)
        with suppress(ClusterError):  # it has already returned to service
            cluster.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    until("all nodes idle", lambda: cluster.states() == {"idle"}, 90)


def answers(run: Run) -> bool:
    """Ask as a client that reads the URL file for each request."""
    url, key = run.url_file.read_text().strip(), run.api_key()
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=5) as client:
        with suppress(openai.APIConnectionError):
            return bool(client.completions.create(model="simulated", prompt="hi", max_tokens=2))
    return False


def test_endpoint_returns_under_the_same_url_file_after_a_power_failure(
    cluster: SlurmCluster, shared_dir: Path, repaired: None, fault: FaultRecorder
) -> None:
    start(cluster, shared_dir, "serve", "name=s")
    run = Run(shared_dir / "runs/s")
    attempt = latest(run.path)
    until("an endpoint", lambda: attempt.endpoint() or attempt.outcome(), 100)
    until("a first answer", lambda: answers(run))
    lost = head_host(attempt, 0)
    row = fault("power failure of the head's node while serving (Slurm)", "the URL file is updated")
    cluster.crash(lost)
    set_down(cluster, lost)
    until("the next execution", lambda: head_host(attempt, 1), 100)
    until("an answer", lambda: answers(run), 100)
    row.recovered()
    assert head_host(attempt, 1) != lost
    stopped = hpc_dynamo("stop", "s", cwd=shared_dir, env=cluster.env)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    until("no jobs", lambda: not cluster.slurm("squeue", "--noheader").strip(), 60)
    outcome = attempt.outcome()
    assert outcome
    assert (outcome.exit_code, outcome.restart_count) == (0, 1)


def test_node_that_runs_on_after_slurm_gave_it_up_does_not_disturb_the_batch(
    cluster: SlurmCluster, shared_dir: Path, repaired: None, fault: FaultRecorder
) -> None:
    """Only its slurmd is dead, so Slurm cannot end the head there; the head ends itself."""
    ids = write_prompts(shared_dir / "prompts.jsonl", 60, max_tokens=16)
    slow = ("engine.args.time-scale=30", "batch.concurrency=4")
    start(cluster, shared_dir, "batch", "input=prompts.jsonl", *slow)
    run = shared_dir / "runs/prompts"
    until_results(run, 5, 120)
    attempt = latest(run)
    lost = head_host(attempt, 0)
    row = fault("node of a batch's head set down that runs on (Slurm)", "each result once")
    cluster.kill(lost)
    set_down(cluster, lost)
    until("the next execution", lambda: head_host(attempt, 1), 100)
    until("the end of the old one", lambda: not runs(cluster, lost, HEAD), 60)
    until("the output", (run / "output.jsonl").exists, 200)
    row.recovered()
    row.requests(len(ids))
    assert list(answers_of(run / "output.jsonl")) == ids
    until("no jobs", lambda: not cluster.slurm("squeue", "--noheader").strip(), 60)
    outcome = attempt.outcome()
    assert outcome
    assert (outcome.exit_code, outcome.restart_count) == (0, 1)
