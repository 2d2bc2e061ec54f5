"""Fixtures of fault tests: the seed, and the rows of the table of faults."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster.node_failures import repair
from tests.cluster.slurm import SlurmCluster
from tests.support.fault_rows import FaultRecorder, append_rows

REPORT = pytest.StashKey[pytest.TestReport]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat each test that records a row with every seed."""
    if "seed" in metafunc.fixturenames:
        seeds = range(metafunc.config.getoption("fault_seeds"))
        metafunc.parametrize("seed", seeds, ids=[f"seed{seed}" for seed in seeds])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the report of the test itself for the fixture `fault`."""
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
    return report


@pytest.fixture
def fault(request: pytest.FixtureRequest, seed: int) -> Iterator[FaultRecorder]:
    """Yield the recorder of this test's rows."""
    test = request.node.nodeid.removeprefix("tests/faults/")
    recorder = FaultRecorder(seed, test)
    yield recorder
    file: Path | None = request.config.getoption("fault_rows")
    report = request.node.stash.get(REPORT, None)
    if file and report and not report.skipped:
        append_rows(file, recorder.rows(_failure(report)))


@pytest.fixture
def healthy(cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """Yield the cluster; repair all nodes at the end."""
    yield cluster
    repair(cluster)


def _failure(report: pytest.TestReport) -> str:
    """Return the first line of a failure; empty for a test that passed."""
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash else report.longrepr)
    return text.splitlines()[0].removeprefix("AssertionError: ")[:200]
