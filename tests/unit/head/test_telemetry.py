"""The table of metric families, and the page of metrics made from it."""

import re
from collections import Counter

from hpc_dynamo.config import Config, Role
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.head.telemetry.exposition import ModelMetrics, exposition
from hpc_dynamo.head.telemetry.families import FAMILIES
from hpc_dynamo.messages import PlannerStatus, Traffic, WorkerLoad, WorkerReport, WorkerState
from hpc_dynamo.router import RequestRouter

WORKER = WorkerReport(rank=3, role=Role.decode, node=0, host="n1", state=WorkerState.ready)


def page(*models: str) -> str:
    stats = FrontendStats(responses={"/v1/completions 200": 2})
    stats.ttft.observe(0.2)
    router = RequestRouter.from_config(Config())
    metrics = {model: ModelMetrics(stats, Traffic(active=5), router) for model in models}
    planner = PlannerStatus(at=0.0, rate_hz=2.0, prefill=1, decode=3)
    loads, tasks = [WorkerLoad(rank=3, running=4)], {"head": 7}
    return exposition(metrics, FrontendStats(), loads, [WORKER], planner, tasks, {"frontends": 2})


def test_every_family_has_a_name_of_its_own_and_a_help_sentence() -> None:
    names = Counter(family.name for family in FAMILIES)
    assert set(names.values()) == {1}
    assert all(re.fullmatch(r"[0-9A-Z].*\.", family.help) for family in FAMILIES)
    assert all(name.startswith("hpc_dynamo_") for name in names)


def test_page_of_one_model_has_every_family_of_the_table_and_no_other() -> None:
    shown = re.findall(r"^# TYPE (\w+) (\w+)$", page(""), re.MULTILINE)
    assert sorted(shown) == sorted((f.sample_name, f.kind) for f in FAMILIES)
    assert 'hpc_dynamo_requests_total{path="/v1/completions",status="200"} 2.0' in page("")
    assert "hpc_dynamo_requests_running 5.0" in page("")
    assert 'hpc_dynamo_asyncio_tasks{process="head"} 7.0' in page("")
    assert 'hpc_dynamo_defects_total{process="frontends"} 2.0' in page("")
    assert 'hpc_dynamo_worker_requests_running{node="n1",rank="3",role="decode"} 4.0' in page("")


def test_page_of_several_models_labels_their_metrics() -> None:
    text = page("a", "b")
    for model in ("a", "b"):
        assert f'hpc_dynamo_requests_running{{model="{model}"}} 5.0' in text
    assert text.count("# TYPE hpc_dynamo_requests_running gauge") == 1


def test_histogram_has_cumulative_buckets_count_and_sum() -> None:
    (name,) = (f.name for f in FAMILIES if "first_token" in f.name and f.kind == "histogram")
    assert f'{name}_bucket{{le="0.1"}} 0.0' in page("")
    assert f'{name}_bucket{{le="0.25"}} 1.0' in page("")
    assert f'{name}_bucket{{le="+Inf"}} 1.0' in page("")
    assert f"{name}_count 1.0" in page("")
    assert f"{name}_sum 0.2" in page("")
