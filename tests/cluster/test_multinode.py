"""A worker over two Slurm nodes: its parts meet, die and are started again together."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.runs import each_once, hpc_dynamo, latest, results_on_disk, until, write_prompts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# Two pretended GPUs a node.
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


def test_a_further_part_that_is_killed_has_its_worker_started_again(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 60)
    run = shared_dir / "runs/prompts"
    done = hpc_dynamo("batch", "--detach", *TWO_NODES, cwd=shared_dir, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(run)
    until("some results", lambda: results_on_disk(run) >= 3)
    second = cluster.nodes[1]
    # Of two, keeper and engine, the newest is the engine.
    words = ("pkill", "-KILL", "-n", "-f", "hpc_dynamo.simulator.*--node-rank 1")
    subprocess.run(cluster.on(second, *words), check=True)
    outcome = until("the outcome", attempt.outcome, 120)
    assert outcome.exit_code == 0, outcome
    each_once(run, ids)
    said = attempt.agent_log(0).read_text()
    assert f"worker 0 (aggregated), part 2 of 2, on {second} was killed by signal 9" in said
    met = [attempt.agent_log(n).read_text().count(" starts: ") for n in (0, 1)]
    assert met == [2, 2], "both parts were to be started twice"
    first = attempt.agent_log(0).read_text()
    assert f"--master-addr {cluster.address(cluster.nodes[0])}" in first
    assert "CUDA_VISIBLE" not in first
