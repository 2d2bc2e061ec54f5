"""Checks of `cluster.hardware` and of the pools that use it."""

from hpc_dynamo.config.schema.cluster import BootstrapMethod
from hpc_dynamo.config.schema.config import Config
from hpc_dynamo.config.schema.planner import PlannerMode
from hpc_dynamo.config.schema.topology import DEFAULT_HARDWARE
from hpc_dynamo.config.validation.models import errors_of_model
from hpc_dynamo.errors import ConfigError, quoted_override, unknown_name


def check_hardware(config: Config) -> None:
    """Check that pools name known hardware, and that the run supports nodes of several kinds."""
    for model, own in config.by_model.items():
        with errors_of_model(model):
            _check_names(own)
    used, nodes = config.hardware_in_use, config.topology.nodes
    if nodes is not None and DEFAULT_HARDWARE not in used:
        what = f"topology.nodes={nodes} has no effect: every pool names its hardware"
        raise ConfigError(what, hint=f"cluster.hardware.{used[0]}.nodes={nodes}")
    if len(used) > 1 and config.planner.mode is not PlannerMode.off:
        what = "workers on nodes of different kinds cannot change their role"
        raise ConfigError(what, hint="the same hardware for both pools, or planner=off")
    if len(used) > 1 and config.cluster.spare_nodes:
        what = f"cluster.spare_nodes={config.cluster.spare_nodes}: pools use nodes of several kinds"
        raise ConfigError(what, hint="cluster.spare_nodes=0, or the same hardware for all pools")
    if len(used) > 1 and config.cluster.bootstrap.method is BootstrapMethod.mpi:
        what = "cluster.bootstrap.method=mpi: PMIx of Slurm fails on nodes of several kinds"
        raise ConfigError(what, hint="cluster.bootstrap.method=tcp")


def _check_names(config: Config) -> None:
    known = config.cluster.hardware
    for role, pool in config.topology.pools:
        if pool.hardware in (DEFAULT_HARDWARE, *known):
            continue
        field = f"topology.{role}.hardware"
        if not known:
            own = quoted_override(f"cluster.hardware.{pool.hardware}.partition", "gpu")
            hint = f"{own}, or another field of it"
            raise ConfigError(f"{field}={pool.hardware}: cluster.hardware is empty", hint=hint)
        raise unknown_name(field, pool.hardware, known)
