"""One Slurm cluster for the whole test session, up when the first test asks for it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster, Spec, sweep, unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Three nodes with two pretended GPUs each. Skips, saying why, where it cannot run.

    With `cluster` among the words of HPC_DYNAMO_REQUIRE it fails instead.
    """
    if reason := unavailable():
        refuse = pytest.fail if "cluster" in _required() else pytest.skip
        refuse(reason)
    sweep()
    with SlurmCluster(Spec(f"t{os.getpid()}n", gpus=2)) as cluster:
        yield cluster


def _required() -> list[str]:
    return os.environ.get("HPC_DYNAMO_REQUIRE", "").replace(",", " ").split()


@pytest.fixture
def shared_dir(cluster: SlurmCluster) -> Path:
    """A new folder that all nodes see; `tmp_path` is on this machine alone."""
    return Path(tempfile.mkdtemp(dir=cluster.shared))
