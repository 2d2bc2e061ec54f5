"""Versions of prefill and decode workers that refuse each other."""

from collections.abc import Iterable

from msgspec.structs import replace

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Role
from hpc_dynamo.head.membership.versions import VersionCheck
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.topology import Shard, Worker

PREFILL = WorkerReport(
    rank=0, role=Role.prefill, node=0, host="n1", state=WorkerState.ready, version="0.32.0"
)
DECODE = replace(PREFILL, rank=1, role=Role.decode, host="n2", version="0.33.0")
READY, STARTING, LOST = WorkerState.ready, WorkerState.starting, WorkerState.lost


def conflict(*words: str, report: WorkerReport = DECODE, other: WorkerReport = PREFILL) -> str:
    """Return why `other`, which was ready before, refuses a worker."""
    check = VersionCheck(compose(list(words)))
    check.conflicts([other])
    return check.conflicts([report, other]).get(report.rank, "")


def test_workers_that_refuse_each_other_are_named() -> None:
    assert conflict("engine=vllm").startswith(
        "vllm 0.33.0 of decode worker 1 on n2 and vllm 0.32.0 of prefill worker 0 on n1 refuse "
        "each other's KV transfers; try: the same version"
    )
    second = replace(DECODE, role=Role.prefill)
    assert "of prefill worker 1 on n2 and vllm 0.32.0 of prefill" in conflict(report=second)


def test_versions_that_need_not_be_equal() -> None:
    extra = "engine.args.kv-transfer-config.kv_connector_extra_config.enforce_handshake_compat"
    assert conflict(f"{extra}=false") == ""
    assert conflict(f"{extra}=true") != ""
    assert conflict("engine.args.kv-transfer-config.kv_connector=LMCacheConnectorV1") == ""
    assert conflict("engine=sglang") == ""
    assert conflict("engine=simulator") == ""


def test_workers_that_do_not_conflict() -> None:
    assert conflict(other=replace(PREFILL, version="0.33.0")) == ""
    assert conflict(other=replace(PREFILL, version="")) == ""
    assert conflict(report=replace(DECODE, version="")) == ""
    assert conflict(other=replace(PREFILL, state=WorkerState.failed)) == ""
    assert conflict(other=replace(PREFILL, model="b")) == ""
    alone = Role.aggregated
    assert conflict(report=replace(DECODE, role=alone), other=replace(PREFILL, role=alone)) == ""


def states(*reports: WorkerReport, workers: int = 0) -> list[WorkerState]:
    """Return the states of all workers after these reports, in the order of their ranks.

    The job has this number of workers, which is by default that of the reports.
    """
    check, applied = VersionCheck(compose(["engine=vllm"])), dict[int, WorkerReport]()
    ranks = range(workers or len({report.rank for report in reports}))
    placed = [Worker(rank, Role.prefill, (Shard(0, ()),)) for rank in ranks]
    for report in reports:
        for change in check.changes(report, applied, placed):
            applied[change.rank] = change
    return [applied[rank].state for rank in sorted(applied)]


def workers(versions: str, roles: str = "pd") -> Iterable[WorkerReport]:
    """Yield reports of workers with these minor versions, ranks from 0, and roles in turn."""
    for rank, minor in enumerate(versions.split()):
        role = Role.prefill if roles[rank % len(roles)] == "p" else Role.decode
        yield replace(PREFILL, rank=rank, role=role, version=f"0.{minor}.0")


def test_version_of_most_workers_is_kept() -> None:
    assert states(*workers("32 33 33 33")) == [LOST, READY, READY, READY]
    assert states(*workers("33 33 32 33 32")) == [READY, READY, LOST, READY, LOST]


def test_first_version_is_kept_if_both_have_as_many_workers() -> None:
    assert states(*workers("33 32 33 32", roles="pddp")) == [READY, LOST, READY, LOST]


def test_version_with_both_roles_is_kept() -> None:
    assert states(*workers("32 32 32 33 33", roles="ppppd")) == [LOST, LOST, LOST, READY, READY]


def test_refused_worker_waits_until_all_versions_are_known() -> None:
    """A stray worker is ready first; later the others are more."""
    stray, first, second = workers("32 33 33", roles="pdp")
    assert states(stray, first, workers=3) == [READY, STARTING]
    assert states(stray, first, second) == [LOST, READY, READY]


def test_refused_worker_returns_if_the_others_are_lost() -> None:
    one, two, other, late = workers("32 32 33 33", roles="pdpd")
    gone = [replace(each, state=LOST, version="") for each in (one, two)]
    assert states(one, two, other, *gone, late) == [LOST, LOST, READY, READY]


def test_worker_that_restarts_with_the_kept_version_is_ready_again() -> None:
    one, other = workers("32 33")
    failed = replace(other, state=WorkerState.failed, version="")
    assert states(one, other, failed, replace(other, version="0.32.0")) == [READY, READY]
