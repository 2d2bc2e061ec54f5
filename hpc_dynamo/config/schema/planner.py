"""Fields of `planner`: role changes, scale-out and the handover to the next job."""

from dataclasses import dataclass
from enum import StrEnum

from hpc_dynamo.config.schema.setting import section, setting


class PlannerMode(StrEnum):
    """Basis of the planner's decisions."""

    off = "off"
    load = "load"  # thresholds of queues and KV caches
    sla = "sla"  # a profile of the engine, and targets for TTFT and ITL


class Forecast(StrEnum):
    """Method that predicts the load of the next interval."""

    last = "last"
    mean = "mean"
    holt = "holt"


REMOVED_FORECASTS = ("kalman", "arima")


class PriorityTarget(StrEnum):
    """Latency target that is kept if the workers cannot meet both."""

    ttft = "ttft"
    itl = "itl"


@dataclass(frozen=True)
class ScaleOut:
    """Additional Slurm jobs whose workers join this run."""

    max_nodes: int = setting(
        0, "Maximum nodes of all additional jobs. 0: none.", unit="nodes", ge=0, was="nodes"
    )
    max_node_hours: float | None = setting(
        None,
        "Maximum node hours of all additional jobs. Null: no limit.",
        unit="node hours",
        gt=0,
        was="node_hours",
    )
    nodes_per_job: int = setting(
        1, "Nodes of one additional job.", unit="nodes", ge=1, was="nodes_each"
    )
    scale_in_delay_s: float = setting(
        300.0,
        "An additional job ends after it has not been needed for this time.",
        unit="s",
        ge=0,
        was="idle_s",
    )


@dataclass(frozen=True)
class Planner:
    """Control loop that changes the roles and the number of workers while the job serves."""

    mode: PlannerMode = setting(
        PlannerMode.off,
        "off; load: thresholds of queues and KV caches; sla: a profile and latency targets.",
        was="by",
    )
    interval_s: float = setting(5.0, "Time between two decisions.", unit="s", gt=0)
    forecast: Forecast = setting(
        Forecast.holt, "Method that predicts the load of the next interval."
    )
    profile: str = setting("", "File written by `hpc-dynamo profile`, for mode=sla.", path=True)
    ttft_s: float = setting(2.0, "Target for the mean time to first token.", unit="s", gt=0)
    itl_s: float = setting(0.04, "Target for the mean inter-token latency.", unit="s", gt=0)
    priority_target: PriorityTarget = setting(
        PriorityTarget.itl, "Target that is kept if the workers cannot meet both.", was="protect"
    )
    min_prefill_workers: int = setting(
        1, "Minimum number of prefill workers.", unit="workers", ge=1, was="least_prefill"
    )
    min_decode_workers: int = setting(
        1, "Minimum number of decode workers.", unit="workers", ge=1, was="least_decode"
    )
    stabilization_intervals: int = setting(
        2,
        "Intervals in a row that must require the same change before it is made.",
        unit="intervals",
        ge=1,
        was="patience",
    )
    hysteresis: float = setting(
        0.1,
        "Relative change of load below which a worker does not change its role back.",
        ge=0,
        was="margin",
    )
    prefill_wait_threshold_s: float = setting(
        1.0,
        "mode=load: time that a prefill worker needs for its queue, above which prefill is "
        "overloaded.",
        unit="s",
        gt=0,
        was="queue_high_s",
    )
    kv_usage_high: float = setting(
        0.8,
        "Maximum share of the KV cache of decode workers to use. Above it one is added.",
        ge=0,
        le=1,
        was="kv_high",
    )
    kv_usage_low: float = setting(
        0.4,
        "mode=load: share of the KV cache in use below which decode workers can be spared.",
        ge=0,
        le=1,
        was="kv_low",
    )
    drain_timeout_s: float = setting(
        300.0,
        "Maximum time that a role change waits for running requests.",
        unit="s",
        gt=0,
        was="drain_s",
    )
    restart_on_role_change: bool = setting(
        False,
        "Restart an engine for a role change even if it can change its role without.",
        was="restart",
    )
    job_handover: bool = setting(
        False, "Submit a successor job that takes over before the walltime ends.", was="handover"
    )
    job_handover_lead_s: float = setting(
        60.0,
        "Minimum time between the submission of the successor and its start of service.",
        unit="s",
        gt=0,
        was="handover_lead_s",
    )
    scale_out: ScaleOut = section(ScaleOut(), was="grow")
