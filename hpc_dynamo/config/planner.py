"""How the ranks of a running job are reshaped."""

from dataclasses import dataclass
from enum import StrEnum


class PlannerKind(StrEnum):
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


class Protect(StrEnum):
    """Which target is kept where both cannot be."""

    ttft = "ttft"
    itl = "itl"


@dataclass(frozen=True)
class Grow:
    """Further Slurm jobs whose workers join this run. `nodes=0`: none are asked for."""

    nodes: int = 0  # at most, over all further jobs
    node_hours: float | None = None  # at most, over the run's life
    nodes_each: int = 1  # of one further job
    idle_s: float = 300.0  # not needed for so long: given back


@dataclass(frozen=True)
class Planner:
    """Reshapes the pools of a disaggregated topology while it serves."""

    by: PlannerKind = PlannerKind.off
    interval_s: float = 5.0
    forecast: Forecast = Forecast.holt  # least error: docs/predictors.md
    profile: str = ""  # file of `hpc-dynamo profile`, for by=sla
    ttft_s: float = 2.0  # targets, each of the mean request
    itl_s: float = 0.04
    protect: Protect = Protect.itl
    least_prefill: int = 1
    least_decode: int = 1
    patience: int = 2  # intervals in a row that must want the same before anything changes
    margin: float = 0.1  # relative load; needs that waver by less move nobody there and back
    queue_high_s: float = 1.0  # by=load: time to compute what waits for prefill, of a worker
    kv_high: float = 0.8  # by=load: share of decode workers' caches
    kv_low: float = 0.4
    drain_s: float = 300.0  # the longest that a change of role waits for requests under way
    restart: bool = False  # for a change of role, also engines that do without
    handover: bool = False  # a successor job takes over before the walltime ends
    handover_lead_s: float = 60.0  # it is asked for at least so long before it must serve
    grow: Grow = Grow()
