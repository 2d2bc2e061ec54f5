"""Versions of prefill and decode workers that refuse each other."""

from msgspec.structs import replace

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Role
from hpc_dynamo.head.membership.versions import VersionCheck
from hpc_dynamo.messages import WorkerReport, WorkerState

PREFILL = WorkerReport(
    rank=0, role=Role.prefill, node=0, host="n1", state=WorkerState.ready, version="0.32.0"
)
DECODE = replace(PREFILL, rank=1, role=Role.decode, host="n2", version="0.33.0")


def conflict(*words: str, report: WorkerReport = DECODE, other: WorkerReport = PREFILL) -> str:
    return VersionCheck(compose(list(words))).conflict(report, [other, report])


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
