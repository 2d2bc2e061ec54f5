"""Transformations of the configuration, in the order in which a run applies them.

    state        made by
    composed     cli.compose: files and overrides
    resolved     resolve_route (`route` only), with_run, with_engine_limits
    sized        with_node_resources, then launch.fit_to_nodes with the nodes of the partition
    saved        all processes of the job read this state from the run folder

From the saved state the processes of a job derive views, which are never saved:

    of a model     Config.for_model, then with_throughput_routing in the router of a batch
    of nodes       with_hardware, then with_extra_job for an additional job
    of a worker    with_worker_options, which is what engine adapters get

All functions are pure: they return a new configuration and read no file.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hpc_dynamo.config.merge import merge_options, with_dashes, with_names_of
from hpc_dynamo.config.schema.cluster import Hardware
from hpc_dynamo.config.schema.config import Config
from hpc_dynamo.config.schema.engine import Device, Engine
from hpc_dynamo.config.schema.router import Router
from hpc_dynamo.config.schema.topology import DEFAULT_HARDWARE, Pool, Role, Topology, TopologyKind
from hpc_dynamo.config.schema.workload import Route, Task
from hpc_dynamo.config.validation.route import base_urls, check_route
from hpc_dynamo.config.validation.text import check_folder
from hpc_dynamo.errors import ConfigError

SLURM_FIELDS = ("gpu_type", "partition", "account", "qos", "constraint", "reservation")
NODE_FIELDS = ("gpus_per_node", "cpus_per_node", "memory_gb_per_node")
BATCH_RECOMPUTE_WEIGHT = 2.0  # uncached tokens delay this request and all later ones


def resolve_route(config: Config) -> Config:
    """Return the configuration with a topology of the engines of `route`. Raises ConfigError."""
    given = config.route
    route = replace(
        given,
        workers=base_urls("workers", given.workers),
        prefill=base_urls("prefill", given.prefill),
        decode=base_urls("decode", given.decode),
        peers=base_urls("peers", given.peers),
    )
    check_route(route)
    if route.peers and not config.serve.api_key_file:
        hint = "serve.api_key_file=FILE, the same for all of them"
        raise ConfigError("route.peers need an API key that they share", hint=hint)
    # This run does not place their GPUs.
    engine = replace(config.engine, device=Device.cpu)
    return replace(config, route=route, engine=engine, topology=_route_topology(route))


def _route_topology(route: Route) -> Topology:
    if route.workers:
        pool = Pool(workers=len(route.workers))
        return Topology(TopologyKind.aggregated, nodes=1, aggregated=pool)
    prefill, decode = Pool(workers=len(route.prefill)), Pool(workers=len(route.decode))
    return Topology(TopologyKind.disaggregated, nodes=1, prefill=prefill, decode=decode)


def with_run(config: Config, name: str, runs_dir: str, profile: str) -> Config:
    """Return the configuration with the name of the run, and absolute paths of the folder of runs
    and the planner's profile. Raises ConfigError for a name that cannot be a folder."""
    check_folder(runs_dir, name)
    planner = replace(config.planner, profile=profile)
    return replace(config, name=name, runs_dir=runs_dir, planner=planner)


def with_engine_limits(config: Config, is_concurrent: Callable[[Engine], bool]) -> Config:
    """Return the configuration with routers that use only what the engines support.

    If prefill and decode of a request start concurrently (`is_concurrent` of a model's engines), a
    decode worker cannot compute the whole request.
    """

    def router(own: Config) -> Router:
        if own.topology.kind is TopologyKind.disaggregated and is_concurrent(own.engine):
            return replace(own.router, conditional_disaggregation=False)
        return own.router

    models = {
        name: replace(model, router=router(config.for_model(name)))
        for name, model in config.models.items()
    }
    return replace(config, router=config.router if models else router(config), models=models)


def with_node_resources(
    config: Config, gpus: int | None, cpus: int | None = None, memory_gb: float | None = None
) -> Config:
    """Return the configuration with resources of each node, in fields that the user did not set."""
    known = dict(zip(NODE_FIELDS, (gpus, cpus, memory_gb), strict=True))
    unset: dict[str, Any] = {k: v for k, v in known.items() if getattr(config.cluster, k) is None}
    return replace(config, cluster=replace(config.cluster, **unset))


def with_throughput_routing(config: Config) -> Config:
    """Return the configuration of a batch with a router for throughput; any other unchanged.

    Decode workers do not compute prompts that prefill workers can compute. A prefix is computed
    again on another worker only if this saves more time than it costs.
    """
    if config.task is not Task.batch:
        return config
    weight = max(config.router.recompute_weight, BATCH_RECOMPUTE_WEIGHT)
    router = replace(config.router, conditional_disaggregation=False, recompute_weight=weight)
    return replace(config, router=router)


def with_hardware(config: Config, hardware: str) -> Config:
    """Return the configuration that holds on nodes of one kind of `cluster.hardware`."""
    if hardware == DEFAULT_HARDWARE:
        return config
    given, cluster = config.cluster.hardware[hardware], config.cluster
    slurm = replace(
        cluster.slurm, **_set(given, SLURM_FIELDS), extra=cluster.slurm.extra | given.extra
    )
    topology = replace(config.topology, nodes=given.nodes)
    cluster = replace(cluster, **_set(given, NODE_FIELDS), slurm=slurm)
    return replace(config, cluster=cluster, topology=topology)


def _set(given: Hardware, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def with_extra_job(config: Config, number: int, walltime: str) -> Config:
    """Return the configuration that requests an additional job of a run. Its agents need no MPI.

    `number` is that of the job. `walltime` is a time of Slurm.
    """
    slurm = replace(config.cluster.slurm, time=walltime, mpi="none")
    cluster = replace(config.cluster, slurm=slurm)
    return replace(config, name=f"{config.name}+{number}", cluster=cluster)


def with_worker_options(config: Config, model: str, role: Role) -> Config:
    """Return the configuration of the workers of one model (empty: the only one) and role."""
    return with_role_options(config.for_model(model), role)


def with_role_options(config: Config, role: Role) -> Config:
    """Return the configuration with the options of a role merged into those of all workers.

    The result has them in `engine.args` and `engine.env`. A second call changes nothing.
    """
    engine, own = config.engine, config.engine.role_options(role)
    args = merge_options(engine.args, with_names_of(own.args, engine.args))
    return replace(config, engine=replace(engine, args=args, env={**engine.env, **own.env}))


def role_options_differ(config: Config) -> bool:
    """Return True if prefill and decode workers are started with different options."""
    prefill, decode = (
        _plain_options(with_role_options(config, role).engine)
        for role in (Role.prefill, Role.decode)
    )
    return prefill != decode


def _plain_options(engine: Engine) -> tuple[dict[str, Any], dict[str, str]]:
    return {with_dashes(name): value for name, value in engine.args.items()}, engine.env
