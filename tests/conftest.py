"""Shared fixtures: a run folder, a Slurm cluster, no traces of an enclosing job."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler.loadfile import LoadFileScheduling
from xdist.workermanage import WorkerController

from hpc_dynamo.config import Config
from hpc_dynamo.process.child import JOB_VARIABLES
from hpc_dynamo.run import Attempt, Run, Secrets, new_token
from hpc_dynamo.topology import Plan
from hpc_dynamo.wire import new_keys
from tests.cluster.slurm import SlurmCluster, Spec, sweep, unavailable
from tests.support.requirements import skip_without
from tests.support.terminal import Call, caller
from tests.support.worker_shares import in_shares

# Examples have no deadline, since the machine may be busy; pytest has its own timeout.
settings.register_profile(
    "hpc_dynamo", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("hpc_dynamo"), max_examples=15)
settings.load_profile("hpc_dynamo")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/faults. They are known here because pytest reads this file first."""
    group = parser.getgroup("faults")
    about = "seeds of each fault test (1)"
    group.addoption("--fault-seeds", type=int, default=1, metavar="N", help=about)
    about = "append the rows of the table of faults to this file"
    group.addoption("--fault-rows", type=Path, metavar="FILE", help=about)


class EngineScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Distribution of tests by file, or by folder below tests/vllm, whose files share engines."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.startswith("tests/vllm/") else file


# Optional: for runs with `-p no:xdist`.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    by_file = config.getoption("dist") == "loadfile"
    return EngineScheduling(config, log) if by_file else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["dist"] = node.config.getoption("dist")


@pytest.hookimpl(trylast=True)  # some tests are deselected before
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    worker = getattr(config, "workerinput", {})
    if worker.get("dist") == "worksteal":
        names = in_shares([item.nodeid for item in items], worker["workercount"])
        place = {name: at for at, name in enumerate(names)}
        items.sort(key=lambda item: place[item.nodeid])


@pytest.fixture(autouse=True)
def _outside_of_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide an enclosing allocation or mpirun from the code under test."""
    for name in os.environ:
        if name.startswith(JOB_VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a new run whose folder name has characters that need quoting in shells."""
    public, private = new_keys()
    run = Run(tmp_path / 'it\'s a "run" ü')
    run.create(Secrets(token=new_token(), public=public, private=private))
    return run


@pytest.fixture
def attempt(run: Run) -> Attempt:
    """Return the first attempt of the run, with a default configuration."""
    return run.new_attempt(Config(), Plan(1, 0, ()))


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Return a function that calls the command line in this process, in a new folder."""
    return caller(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Start three Slurm nodes with two fake GPUs each, when the first test needs them.

    Tests are skipped, with a reason, if they cannot run; with `cluster` among the words of
    HPC_DYNAMO_REQUIRE they fail instead.
    """
    if reason := unavailable():
        skip_without("cluster", reason)
    sweep()
    with SlurmCluster(Spec(f"t{os.getpid()}n", gpus=2)) as cluster:
        yield cluster


@pytest.fixture
def shared_dir(cluster: SlurmCluster) -> Path:
    """Return a new folder that all nodes share; `tmp_path` exists only on this machine."""
    return Path(tempfile.mkdtemp(dir=cluster.shared))
