"""What many tests need: a run folder, and no trace of a job that the tests may run inside."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hpc_dynamo.config import Config
from hpc_dynamo.process.child import JOB_VARIABLES
from hpc_dynamo.run import Attempt, Run, Secrets, new_token
from hpc_dynamo.topology import Plan
from hpc_dynamo.wire import new_keys
from tests.support.terminal import Call, caller

# On a busy machine an example may take any time; pytest has a timeout of its own.
settings.register_profile(
    "ours", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ours")


@pytest.fixture(autouse=True)
def _outside_of_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may be started inside an allocation or under mpirun; the code must not know."""
    for name in os.environ:
        if name.startswith(JOB_VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A new run, its folder's name with what shells stumble over."""
    public, private = new_keys()
    run = Run(tmp_path / 'it\'s a "run" ü')
    run.create(Secrets(token=new_token(), public=public, private=private))
    return run


@pytest.fixture
def attempt(run: Run) -> Attempt:
    """The run's first attempt, of nothing in particular."""
    return run.new_attempt(Config(), Plan(1, 0, ()))


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line, in this process and in a folder of its own."""
    return caller(tmp_path, monkeypatch, capsys)
