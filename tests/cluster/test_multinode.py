"""A worker over two Slurm nodes: its shards start, fail and restart together."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.support.runs import (
    each_once,
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

# Two simulated GPUs per node.
TWO_NODES = (
    *(
        "engine=simulator",
        "engine.device=cuda",
        "cluster.launcher=slurm",
        "cluster.preflight=false",
    ),
    *("cluster.gpus_per_node=2", "topology=aggregated", "topology.aggregated.tensor_parallel=4"),
    *("input=prompts.jsonl", "engine.args.time-scale=20", "batch.concurrency=4"),
)


def test_worker_restarts_after_a_shard_was_killed(cluster: SlurmCluster, shared_dir: Path) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 30)
    run = shared_dir / "runs/prompts"
    done = hpc_dynamo("batch", "--detach", *TWO_NODES, cwd=shared_dir, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(run)
    until_results(run, 3, 120)
    second = cluster.nodes[1]
    # Of two, supervisor and engine, the newest is the engine.
    words = ("pkill", "-KILL", "-n", "-f", "hpc_dynamo.simulator.*--node-rank 1")
    subprocess.run(cluster.on(second, *words), check=True)
    outcome = until("the outcome", attempt.outcome, 120)
    assert outcome.exit_code == 0, outcome
    each_once(run, ids)
    log_text = attempt.agent_log(0).read_text()
    assert f"worker 0 (aggregated), shard 2 of 2, on {second} was killed by signal 9" in log_text
    met = [attempt.agent_log(n).read_text().count(" starts: ") for n in (0, 1)]
    assert met == [2, 2], "both parts were to be started twice"
    first = attempt.agent_log(0).read_text()
    assert f"--master-addr {cluster.address(cluster.nodes[0])}" in first
    assert "CUDA_VISIBLE" not in first


# Two ranks a node, as TensorRT-LLM's: one step of Slurm's over both nodes.
WORLD = (*TWO_NODES, "engine.args.start=mpi", "engine.args.pd-protocol=trtllm")


def _ranks(cluster: SlurmCluster, node: str) -> list[str]:
    """Return the pids of the worker's ranks on a node, in the namespace of the node."""
    words = ("pgrep", "-f", "hpc_dynamo.simulator .*--mpi ")
    found = subprocess.run(cluster.on(node, *words), capture_output=True, text=True)
    return found.stdout.split()


def test_worker_restarts_after_an_mpi_rank_was_killed(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 30)
    run = shared_dir / "runs/prompts"
    done = hpc_dynamo("batch", "--detach", *WORLD, cwd=shared_dir, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(run)
    until_results(run, 3, 120)
    first, second, _ = cluster.nodes
    earlier = {node: _ranks(cluster, node) for node in (first, second)}
    # On the first node srun and its supervisor are found too.
    assert len(earlier[second]) == 2, earlier
    subprocess.run(cluster.on(second, "kill", "-9", earlier[second][0]), check=True)
    outcome = until("the outcome", attempt.outcome, 120)
    assert outcome.exit_code == 0, outcome
    each_once(run, ids)
    log_text = attempt.agent_log(0).read_text()
    assert "2 restarts left" in log_text
    assert f"srun: error: {second}: task " in log_text
    assert "starts: " not in attempt.agent_log(1).read_text(), "the first agent starts all ranks"
    assert "node 3 of 4, connected to node 0" in attempt.worker_log(0).read_text()
    until("no rank left", lambda: not any(_ranks(cluster, n) for n in (first, second)))
