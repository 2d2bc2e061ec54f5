"""Workers of a job on Slurm change their role, in both directions, under a load that changes."""

from pathlib import Path

import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.run import Run
from tests.cluster.slurm import SlurmCluster
from tests.load import Load, flips
from tests.runs import hpc_dynamo, latest, until
from tests.test_vllm import provisioned

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(580)]

TWO_NODES = ("topology.nodes=2", "topology.prefill.workers=1", "topology.decode.workers=2")
PLANNER = (
    *("planner.by=load", "planner.interval_s=1", "planner.patience=1"),
    *("planner.queue_high_s=0.2", "planner.kv_high=0.3", "planner.kv_low=0.05"),
    "router.local_prefill=false",
)
START_S, FLIP_S = 300.0, 120.0


async def both_ways(
    cluster: SlurmCluster, folder: Path, words: tuple[str, ...], model: str, prompts: int
) -> None:
    """First long prompts, then long answers; each until a worker has changed its role for it."""
    argv = ("serve", "name=s", "cluster.launcher=slurm", "--detach", *TWO_NODES, *PLANNER, *words)
    done = hpc_dynamo(*argv, cwd=folder, env=cluster.env, timeout_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(folder / "runs" / "s")
    attempt = latest(run.path)
    try:
        until("an endpoint", lambda: attempt.endpoint() or attempt.outcome(), START_S)
        endpoint = attempt.endpoint()
        assert endpoint, attempt.outcome()
        until("all workers", lambda: ready(run) == 3, START_S)
        asking = Load(endpoint.url, run.api_key(), model, prompts, 1)
        await asking.run_until(lambda: flips(attempt, Role.prefill), 6, FLIP_S)
        telling = Load(endpoint.url, run.api_key(), model, 3, 200)
        await telling.run_until(lambda: flips(attempt, Role.decode), 24, FLIP_S)
        assert asking.pieces
        assert telling.pieces
    finally:
        hpc_dynamo("stop", "name=s", cwd=folder, env=cluster.env, timeout_s=100)
    told = hpc_dynamo("report", "name=s", cwd=folder)
    assert told.returncode == 0, told.stderr
    assert "decode to prefill done" in told.stdout
    assert "prefill to decode done" in told.stdout


def ready(run: Run) -> int:
    status = latest(run.path).status()
    return sum(w.state == "ready" for w in status.workers) if status else 0


async def test_simulator_ranks(cluster: SlurmCluster, shared_dir: Path) -> None:
    words = (
        *("engine=simulator", "engine.args.timing=h100-8b", "engine.args.time-scale=8"),
        "engine.args.num-blocks=512",
    )
    await both_ways(cluster, shared_dir, words, "simulated", prompts=1200)


@pytest.mark.vllm
async def test_vllm_ranks(cluster: SlurmCluster, shared_dir: Path) -> None:
    vllm = provisioned()
    words = (
        *("engine=vllm-cpu", f"engine.python={vllm.python}", f"model.path={vllm.model}"),
        *("model.name=smol", "engine.args.num-gpu-blocks-override=24"),
    )
    await both_ways(cluster, shared_dir, words, "smol", prompts=300)
