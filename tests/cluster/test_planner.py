"""Workers of a Slurm job change their role in both directions as the load changes."""

from pathlib import Path

import pytest

from hpc_dynamo.config import Role
from tests.cluster.serving import PLANNER, serving
from tests.cluster.slurm import SlurmCluster
from tests.support.load import flips
from tests.support.runs import hpc_dynamo
from tests.support.vllm import provisioned
from tests.support.vllm_serve import SMALL_ENGINE

pytestmark = pytest.mark.cluster

TWO_NODES = ("topology.nodes=2", "topology.prefill.workers=1", "topology.decode.workers=2")
FLIP_S = 120.0


async def change_roles_both_ways(
    cluster: SlurmCluster, folder: Path, words: tuple[str, ...], model: str, prompts: int
) -> None:
    """Send long prompts, then long answers, each until a worker has changed its role."""
    words = (*TWO_NODES, *PLANNER, *words)
    async with serving(cluster, folder, *words, workers=3, model=model) as job:
        asking = job.load(prompts, 1)
        await asking.run_until(lambda: flips(job.attempt, Role.prefill), 6, FLIP_S)
        telling = job.load(3, 200)
        await telling.run_until(lambda: flips(job.attempt, Role.decode), 24, FLIP_S)
        assert asking.pieces
        assert telling.pieces
    records = hpc_dynamo("report", "name=s", cwd=folder)
    assert records.returncode == 0, records.stderr
    assert "decode to prefill done" in records.stdout
    assert "prefill to decode done" in records.stdout


async def test_simulator_workers_follow_the_load(cluster: SlurmCluster, shared_dir: Path) -> None:
    words = (
        *("engine=simulator", "engine.args.timing=h100-8b", "engine.args.time-scale=8"),
        *("engine.args.num-blocks=320", "engine.args.max-model-len=4096"),
    )
    await change_roles_both_ways(cluster, shared_dir, words, "simulated", prompts=1200)


@pytest.mark.vllm
async def test_vllm_workers_follow_the_load(cluster: SlurmCluster, shared_dir: Path) -> None:
    vllm = provisioned()
    words = (
        *("engine=vllm-cpu", f"engine.python={vllm.python}", f"model.path={vllm.model}"),
        *("model.name=smol", *SMALL_ENGINE, "engine.args.num-gpu-blocks-override=24"),
    )
    await change_roles_both_ways(cluster, shared_dir, words, "smol", prompts=300)
