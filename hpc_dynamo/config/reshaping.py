"""Values of `planner` that cannot work."""

from hpc_dynamo.config.planner import Planner, PlannerKind
from hpc_dynamo.config.schema import Config, Kind, Pool
from hpc_dynamo.errors import ConfigError


def check_planner(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    planner = config.planner
    _check_handover(config)
    if planner.by is PlannerKind.off:
        return
    _check_pools(config)
    _check_numbers(planner)


def _check_handover(config: Config) -> None:
    planner = config.planner
    if planner.handover and config.route.engines:
        what = "planner.handover=true hands over to a further job, and here is none to begin with"
        raise ConfigError(what, hint="planner.handover=false")
    if planner.handover_lead_s <= 0:
        what = f"planner.handover_lead_s={planner.handover_lead_s} must be above 0"
        raise ConfigError(what, hint="planner.handover_lead_s=60, or what your queue takes")


def _check_pools(config: Config) -> None:
    topology, planner = config.topology, config.planner
    if topology.kind is not Kind.disaggregated or config.route.engines:
        what = f"planner.by={planner.by} has no roles to change here"
        hint = "topology=disaggregated with workers that we start, or planner=off"
        raise ConfigError(what, hint=hint)
    if _shape(topology.prefill) != _shape(topology.decode):
        what = "workers of different shapes cannot change their role"
        raise ConfigError(what, hint="the same parallel sizes in both pools, or planner=off")
    least = {"least_prefill": planner.least_prefill, "least_decode": planner.least_decode}
    for name, value in least.items():
        if value < 1:
            raise ConfigError(
                f"planner.{name}={value} must be at least 1", hint=f"planner.{name}=1"
            )
    workers = topology.prefill.workers + topology.decode.workers
    if sum(least.values()) > workers:
        what = f"planner.least_prefill + planner.least_decode is more than the {workers} workers"
        raise ConfigError(what, hint="planner.least_prefill=1 planner.least_decode=1")


def _shape(pool: Pool) -> tuple[int, int, int]:
    return pool.tensor_parallel, pool.pipeline_parallel, pool.data_parallel


def _check_numbers(planner: Planner) -> None:
    for name in ("interval_s", "ttft_s", "itl_s", "queue_high_s", "drain_s", "patience"):
        value = getattr(planner, name)
        if value <= 0:
            default = getattr(Planner(), name)
            hint = f"planner.{name}={default}"
            raise ConfigError(f"planner.{name}={value} must be above 0", hint=hint)
    if planner.margin < 0:
        what = f"planner.margin={planner.margin} must not be negative"
        raise ConfigError(what, hint="planner.margin=0.1")
    if not 0 <= planner.kv_low < planner.kv_high <= 1:
        what = f"planner.kv_low={planner.kv_low}, planner.kv_high={planner.kv_high}"
        raise ConfigError(what, hint="shares: 0 <= kv_low < kv_high <= 1")
