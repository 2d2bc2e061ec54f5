"""Slurm cluster of a test session, started by the first test that needs it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster, Spec, sweep, unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Three nodes with two fake GPUs each. Tests are skipped, with a reason, if it cannot run.

    With `cluster` among the words of HPC_DYNAMO_REQUIRE the tests fail instead.
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
    """Return a new folder that all nodes share; `tmp_path` exists only on this machine."""
    return Path(tempfile.mkdtemp(dir=cluster.shared))
