"""Checks of `planner`."""

from hpc_dynamo.config.schema.config import Config
from hpc_dynamo.config.schema.planner import PlannerMode
from hpc_dynamo.config.schema.topology import TopologyKind
from hpc_dynamo.config.schema.workload import Task
from hpc_dynamo.errors import ConfigError


def check_planner(config: Config) -> None:
    """Check that the planner can change the roles of the workers, if it is on."""
    planner = config.planner
    if planner.job_handover and config.route.engines:
        what = "planner.job_handover=true needs a Slurm job, and `route` submits none"
        raise ConfigError(what, hint="planner.job_handover=false")
    if planner.mode is PlannerMode.off:
        return
    _check_pools(config)
    if not planner.kv_usage_low < planner.kv_usage_high:
        what = f"planner.kv_usage_low={planner.kv_usage_low}, "
        what += f"planner.kv_usage_high={planner.kv_usage_high}"
        raise ConfigError(what, hint="shares: 0 <= kv_usage_low < kv_usage_high <= 1")


def _check_pools(config: Config) -> None:
    topology, planner = config.topology, config.planner
    if topology.kind is not TopologyKind.disaggregated or config.route.engines:
        what = f"planner.mode={planner.mode} has no roles to change here"
        hint = "topology=disaggregated and hpc-dynamo serve, or planner=off"
        raise ConfigError(what, hint=hint)
    if topology.prefill.parallel != topology.decode.parallel:
        what = "workers of different shapes cannot change their role"
        raise ConfigError(what, hint="the same parallel sizes in both pools, or planner=off")
    workers = topology.prefill.workers + topology.decode.workers
    if planner.min_prefill_workers + planner.min_decode_workers > workers:
        what = "planner.min_prefill_workers + planner.min_decode_workers is more than the "
        what += f"{workers} workers"
        raise ConfigError(what, hint="planner.min_prefill_workers=1 planner.min_decode_workers=1")


def check_scale_out(config: Config) -> None:
    """Check that additional jobs, if any are allowed, have a planner and fit its limits."""
    limits = config.planner.scale_out
    if limits.max_nodes <= 0:
        return
    if limits.nodes_per_job > limits.max_nodes:
        what = f"planner.scale_out.nodes_per_job={limits.nodes_per_job} is more than "
        what += f"planner.scale_out.max_nodes={limits.max_nodes}"
        hint = "planner.scale_out.nodes_per_job=1, or planner.scale_out.max_nodes=0 for no jobs"
        raise ConfigError(what, hint=hint)
    if config.planner.mode is PlannerMode.off:
        what = "planner.scale_out.max_nodes is set, but the planner is off"
        raise ConfigError(what, hint="planner=load, or planner=sla planner.profile=FILE")
    if config.task is not Task.serve:
        what = "planner.scale_out adds workers to an endpoint"
        raise ConfigError(what, hint="hpc-dynamo serve …, or planner.scale_out.max_nodes=0")
