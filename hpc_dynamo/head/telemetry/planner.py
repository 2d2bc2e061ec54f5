"""The planner's figures for Prometheus."""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric

from hpc_dynamo.head.telemetry.families import counters
from hpc_dynamo.messages import PlannerStatus

PREFIX = "hpc_dynamo_planner"


def metrics(planning: PlannerStatus | None) -> Iterable[Metric]:
    """Everything under `hpc_dynamo_planner_`; nothing without a planner."""
    if planning is None:
        return
    text = "workers that it wants"
    wanted = GaugeMetricFamily(f"{PREFIX}_wanted", text, labels=["role"])
    wanted.add_metric(["prefill"], planning.prefill)
    wanted.add_metric(["decode"], planning.decode)
    yield wanted
    text = "requests a second that it expects"
    yield GaugeMetricFamily(f"{PREFIX}_expected_rate", text, value=planning.rate_hz)
    text = "workers that change their role now"
    yield GaugeMetricFamily(f"{PREFIX}_moving", text, value=len(planning.changing))
    counted = {
        "flips": (planning.role_changes, "changes of role"),
        "failed_flips": (planning.failed_role_changes, "changes of role that did not come about"),
    }
    yield from counters(PREFIX, counted)
