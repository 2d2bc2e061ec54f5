"""Findings of the doctor from given facts and measurements: pure functions."""

from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.doctor import analysis
from hpc_dynamo.doctor.checks import ALL_CHECKS, MAX_CLOCK_ERROR_S, check_clock, run_checks
from hpc_dynamo.doctor.preflight import raise_for_faults, with_clock_faults
from hpc_dynamo.doctor.records import FindingLevel, LinkResult, NodeFacts, NodeReady
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.messages import NodeRecord, Roster
from tests.support.doctor import HEALTHY, HERE, HOSTS


def test_advice_for_local_run_names_no_slurm_field() -> None:
    broken = msgspec.structs.replace(HEALTHY, gpus_wanted=2, nofile=9, engine_error="no vllm")
    slurm = [f.fix for f in run_checks(broken, ALL_CHECKS)]
    local = [f.fix for f in run_checks(msgspec.structs.replace(broken, local=True), ALL_CHECKS)]
    assert [("slurm" in a, "slurm" in b) for a, b in zip(slurm, local, strict=True)] == [
        (True, False)
    ] * 3


def links(*rates: tuple[int, int, float]) -> list[LinkResult]:
    return [LinkResult(node=n, peer=p, gb_s=r, transport="rc_mlx5/mlx5_0:1") for n, p, r in rates]


SlowLinks = tuple[list[LinkResult], set[tuple[str, str]]]
SLOW: dict[str, SlowLinks] = {
    "even": (links((0, 1, 9), (1, 0, 10), (0, 2, 8), (2, 0, 9), (1, 2, 9), (2, 1, 10)), set()),
    "one link": (links((0, 1, 1), (1, 0, 10), (0, 2, 8), (2, 0, 9), (1, 2, 9)), {("a", "b")}),
    "one node": (
        links((0, 1, 9), (1, 0, 10), (0, 2, 1), (2, 0, 1), (1, 2, 1), (2, 1, 1)),
        {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")},
    ),
}


@pytest.mark.parametrize("case", SLOW)
def test_slow_link_is_named_with_its_transport(case: str) -> None:
    measured, slow = SLOW[case]
    found = analysis.link_findings(HOSTS, measured)
    assert {(f.host, f.what.split()[3]) for f in found} == slow
    assert all("over rc_mlx5/mlx5_0:1 is slow: 1.000 GB/s" in f.what for f in found)


CLOCKS: dict[str, tuple[float, float, float, bool]] = {
    "in order": (100.0, 90.0, 110.0, False),
    "starts in the future": (100.0, 90.0, 100.0 - 2 * MAX_CLOCK_ERROR_S, True),
    "starts before the submission": (100.0, 100.0 + 2 * MAX_CLOCK_ERROR_S, 200.0, True),
    "unknown submission time": (100.0, 0.0, 110.0, False),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_preflight_checks_order_of_clocks(case: str) -> None:
    started_at, submitted_at, now, wrong = CLOCKS[case]
    record = NodeRecord(node=0, host="n1", address=HERE, pid=1, log="", started_at=started_at)
    roster = Roster(nodes=(record,), method="tcp", seconds=0.1)
    expected = pytest.raises(LaunchError, match="n1: its clock is 10") if wrong else nullcontext()
    with expected:
        raise_for_faults(with_clock_faults(roster, submitted_at, now))


def test_preflight_error_names_the_bad_nodes() -> None:
    records = [
        NodeRecord(node=n, host=f"n{n}", address=HERE, pid=1, log="", faults=("x",) * (n % 2))
        for n in range(4)
    ]
    with pytest.raises(LaunchError) as refused:
        raise_for_faults(Roster(nodes=tuple(records), method="tcp", seconds=0.1))
    assert refused.value.bad_hosts == ("n1", "n3")


def test_small_clock_difference_is_no_finding() -> None:
    assert check_clock(MAX_CLOCK_ERROR_S / 2) is None


def test_node_without_report_is_a_fault(tmp_path: Path) -> None:
    came = [NodeReady(node=0, address=HERE, port=1, facts=HEALTHY)]
    found = analysis.missing_nodes(["a", "b"], came, tmp_path)
    assert [(f.host, f.what) for f in found] == [("b", "it did not report")]


def test_run_folder_with_another_token_is_a_fault() -> None:
    seen = [msgspec.structs.replace(HEALTHY, run_token=word) for word in ("x", "y")]
    nodes = [NodeReady(node=i, address=HERE, port=1, facts=f) for i, f in enumerate(seen)]
    assert [f.host for f in analysis.separate_run_folders(["a", "b"], nodes, "x")] == ["b"]


INJECTED: dict[str, tuple[NodeFacts, str, FindingLevel]] = {
    "rdma without locked memory": (
        msgspec.structs.replace(HEALTHY, memlock=8 << 20, rdma_devices=("mlx5_0",)),
        "at most 8 MiB of locked memory", FindingLevel.fault,
    ),
    "a slow disk": (
        msgspec.structs.replace(HEALTHY, model_gb_s=0.05), "read at 50 MB/s", FindingLevel.warning,
    ),
    "tight shared memory": (
        msgspec.structs.replace(HEALTHY, shm_free=512 << 20), "512 MiB free", FindingLevel.warning,
    ),
    "no MPI": (
        msgspec.structs.replace(HEALTHY, mpi_error="no PMIx"), "no PMIx", FindingLevel.fault,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INJECTED)
def test_facts_that_cannot_occur_here(case: str) -> None:
    facts, what, level = INJECTED[case]
    (found,) = run_checks(facts, ALL_CHECKS)
    assert what in found.what
    assert (found.level, found.host) == (level, "n1")
    assert found.why
    assert found.fix
