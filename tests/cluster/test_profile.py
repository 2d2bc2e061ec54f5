"""`hpc-dynamo profile` on two nodes of Slurm: what it measures moves between them."""

from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.integration.profiler.test_profile import KV_BYTES, SMALL, complete
from tests.support.runs import hpc_dynamo, until

pytestmark = pytest.mark.cluster

WORDS = ("profile", "engine=simulator", "cluster.launcher=slurm", "topology.nodes=2", "name=small")


def test_a_worker_on_each_node_is_measured(cluster: SlurmCluster, shared_dir: Path) -> None:
    done = hpc_dynamo(*WORDS, *SMALL, cwd=shared_dir, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    profile = complete(shared_dir / "runs/small", transfers=True)
    assert profile.kv_bytes_per_token == KV_BYTES
    assert profile.transfer_s_per_byte >= 0
    until("an empty queue", lambda: not cluster.slurm("squeue", "-h").strip())
