"""How the ranks of a running job are reshaped."""

from dataclasses import dataclass
from enum import StrEnum


class PlannerMode(StrEnum):
    """What decides how many workers prefill and how many decode."""

    off = "off"
    load = "load"  # thresholds of queues and caches
    sla = "sla"  # a profile of the engine, and targets for TTFT and ITL


class Forecast(StrEnum):
    """Predictor of the next interval's load."""

    last = "last"
    mean = "mean"
    holt = "holt"


REMOVED_FORECASTS = ("kalman", "arima")


class PriorityTarget(StrEnum):
    """Which target is kept where both cannot be."""

    ttft = "ttft"
    itl = "itl"


@dataclass(frozen=True)
class ScaleOut:
    """Further Slurm jobs whose workers join this run. `nodes=0`: none are asked for."""

    max_nodes: int = 0  # at most, over all further jobs
    max_node_hours: float | None = None  # at most, over the run's life
    nodes_per_job: int = 1  # of one further job
    scale_in_delay_s: float = 300.0  # not needed for so long: given back


@dataclass(frozen=True)
class Planner:
    """Reshapes the pools of a disaggregated topology while it serves."""

    mode: PlannerMode = PlannerMode.off
    interval_s: float = 5.0
    forecast: Forecast = Forecast.holt  # least error: docs/predictors.md
    profile: str = ""  # file of `hpc-dynamo profile`, for mode=sla
    ttft_s: float = 2.0  # targets, each of the mean request
    itl_s: float = 0.04
    priority_target: PriorityTarget = PriorityTarget.itl
    min_prefill_workers: int = 1
    min_decode_workers: int = 1
    stabilization_intervals: int = (
        2  # intervals in a row that must want the same before anything changes
    )
    hysteresis: float = 0.1  # relative load; needs that waver by less move nobody there and back
    prefill_wait_threshold_s: float = (
        1.0  # mode=load: time to compute what waits for prefill, of a worker
    )
    kv_usage_high: float = 0.8  # mode=load: share of decode workers' caches
    kv_usage_low: float = 0.4
    drain_timeout_s: float = 300.0  # the longest that a change of role waits for requests under way
    restart_on_role_change: bool = False  # for a change of role, also engines that do without
    job_handover: bool = False  # a successor job takes over before the walltime ends
    job_handover_lead_s: float = 60.0  # it is asked for at least so long before it must serve
    scale_out: ScaleOut = ScaleOut()
