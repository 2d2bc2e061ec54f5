"""A run on nodes of several kinds: which it uses, its configuration on each, what cannot work."""

from dataclasses import replace

from hpc_dynamo.config.cluster import BootstrapMethod
from hpc_dynamo.config.planner import PlannerMode
from hpc_dynamo.config.schema import Config
from hpc_dynamo.config.several import errors_of_model
from hpc_dynamo.errors import ConfigError, quoted_override, unknown_name

OWN = ""  # the cluster's own nodes: those of pools that name no kind
SLURM = ("gpu_type", "partition", "account", "qos", "constraint", "reservation")
CLUSTER = ("gpus_per_node", "cpus_per_node", "memory_gb_per_node")


def hardware_in_use(config: Config) -> tuple[str, ...]:
    """Those in use, in the order of the pools: that of the prefill workers first."""
    pools = (pool for own in config.by_model.values() for _, pool in own.topology.pools)
    return tuple(dict.fromkeys(pool.hardware for pool in pools))


def with_hardware(config: Config, kind: str) -> Config:
    """The configuration as it is on nodes of one kind."""
    if kind == OWN:
        return config
    given, cluster = config.cluster.hardware[kind], config.cluster
    asked = {f: value for f in SLURM if (value := getattr(given, f)) is not None}
    has = {f: value for f in CLUSTER if (value := getattr(given, f)) is not None}
    slurm = replace(cluster.slurm, **asked, extra=cluster.slurm.extra | given.extra)
    topology = replace(config.topology, nodes=given.nodes)
    return replace(config, cluster=replace(cluster, **has, slurm=slurm), topology=topology)


def check_kinds(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    _check_values(config)
    for model, own in config.by_model.items():
        with errors_of_model(model):
            _check_names(own)
    used, nodes = hardware_in_use(config), config.topology.nodes
    if nodes is not None and OWN not in used:
        what = f"topology.nodes={nodes} counts nodes of no kind, and all pools name theirs"
        raise ConfigError(what, hint=f"cluster.hardware.{used[0]}.nodes={nodes}")
    if len(used) > 1 and config.planner.mode is not PlannerMode.off:
        what = "workers on nodes of different kinds cannot change their role"
        raise ConfigError(what, hint="the same hardware for both pools, or planner=off")
    if len(used) > 1 and config.cluster.bootstrap.method is BootstrapMethod.mpi:
        what = "cluster.bootstrap.method=mpi: Slurm's PMIx is wrong over nodes of several kinds"
        raise ConfigError(what, hint="cluster.bootstrap.method=tcp")


def _check_names(config: Config) -> None:
    known = config.cluster.hardware
    for role, pool in config.topology.pools:
        if pool.hardware in (OWN, *known):
            continue
        field = f"topology.{role}.hardware"
        if not known:
            own = quoted_override(f"cluster.hardware.{pool.hardware}.partition", "gpu")
            hint = f"{own}, or another field of it"
            raise ConfigError(f"{field}={pool.hardware}: no kinds are described", hint=hint)
        raise unknown_name(field, pool.hardware, known)


def _check_values(config: Config) -> None:
    for kind, given in config.cluster.hardware.items():
        for name in ("nodes", *CLUSTER):
            value = getattr(given, name)
            least = 0 if name == "memory_gb_per_node" else 1  # 0: all memory of a node
            if value is not None and value < least:
                field = f"cluster.hardware.{kind}.{name}"
                raise ConfigError(f"{field}={value} must be at least {least}", hint=f"{field}=1")
