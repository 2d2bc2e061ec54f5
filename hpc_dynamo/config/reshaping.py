"""Values of `planner` that cannot work."""

from hpc_dynamo.config.planner import Planner, PlannerMode
from hpc_dynamo.config.schema import Config, Pool, TopologyKind
from hpc_dynamo.errors import ConfigError


def check_planner(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    planner = config.planner
    _check_handover(config)
    if planner.mode is PlannerMode.off:
        return
    _check_pools(config)
    _check_numbers(planner)


def _check_handover(config: Config) -> None:
    planner = config.planner
    if planner.job_handover and config.route.engines:
        what = (
            "planner.job_handover=true hands over to a further job, and here is none to begin with"
        )
        raise ConfigError(what, hint="planner.job_handover=false")
    if planner.job_handover_lead_s <= 0:
        what = f"planner.job_handover_lead_s={planner.job_handover_lead_s} must be above 0"
        raise ConfigError(what, hint="planner.job_handover_lead_s=60, or what your queue takes")


def _check_pools(config: Config) -> None:
    topology, planner = config.topology, config.planner
    if topology.kind is not TopologyKind.disaggregated or config.route.engines:
        what = f"planner.mode={planner.mode} has no roles to change here"
        hint = "topology=disaggregated with workers that we start, or planner=off"
        raise ConfigError(what, hint=hint)
    if _shape(topology.prefill) != _shape(topology.decode):
        what = "workers of different shapes cannot change their role"
        raise ConfigError(what, hint="the same parallel sizes in both pools, or planner=off")
    least = {
        "min_prefill_workers": planner.min_prefill_workers,
        "min_decode_workers": planner.min_decode_workers,
    }
    for name, value in least.items():
        if value < 1:
            raise ConfigError(
                f"planner.{name}={value} must be at least 1", hint=f"planner.{name}=1"
            )
    workers = topology.prefill.workers + topology.decode.workers
    if sum(least.values()) > workers:
        what = "planner.min_prefill_workers + planner.min_decode_workers is more than the "
        what += f"{workers} workers"
        raise ConfigError(what, hint="planner.min_prefill_workers=1 planner.min_decode_workers=1")


def _shape(pool: Pool) -> tuple[int, int, int]:
    return pool.tensor_parallel, pool.pipeline_parallel, pool.data_parallel


def _check_numbers(planner: Planner) -> None:
    for name in (
        "interval_s",
        "ttft_s",
        "itl_s",
        "prefill_wait_threshold_s",
        "drain_timeout_s",
        "stabilization_intervals",
    ):
        value = getattr(planner, name)
        if value <= 0:
            default = getattr(Planner(), name)
            hint = f"planner.{name}={default}"
            raise ConfigError(f"planner.{name}={value} must be above 0", hint=hint)
    if planner.hysteresis < 0:
        what = f"planner.hysteresis={planner.hysteresis} must not be negative"
        raise ConfigError(what, hint="planner.hysteresis=0.1")
    if not 0 <= planner.kv_usage_low < planner.kv_usage_high <= 1:
        what = f"planner.kv_usage_low={planner.kv_usage_low}, "
        what += f"planner.kv_usage_high={planner.kv_usage_high}"
        raise ConfigError(what, hint="shares: 0 <= kv_usage_low < kv_usage_high <= 1")
