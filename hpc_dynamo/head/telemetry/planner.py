"""Metrics of the planner's decisions."""

from collections.abc import Iterable

from prometheus_client.core import Metric

from hpc_dynamo.config import Role
from hpc_dynamo.head.telemetry import families
from hpc_dynamo.messages import PlannerStatus


def planner_metrics(status: PlannerStatus | None) -> Iterable[Metric]:
    """Yield the planner's last decision and its role changes; nothing without a planner."""
    if status is None:
        return
    targets = [((Role.prefill,), status.prefill), ((Role.decode,), status.decode)]
    yield families.TARGET_WORKERS.values(targets)
    yield families.EXPECTED_RATE.value(status.rate_hz)
    yield families.ROLE_CHANGING.value(len(status.changing))
    yield families.ROLE_CHANGES.value(status.role_changes)
    yield families.ROLE_CHANGE_FAILURES.value(status.failed_role_changes)
