"""Transformations of the configuration."""

from dataclasses import replace
from typing import Any

from hpc_dynamo.config.schema import Config, Device, Hardware, Pool, Route, Topology, TopologyKind
from hpc_dynamo.config.schema.topology import DEFAULT_HARDWARE
from hpc_dynamo.config.validation.route import base_urls, check_route
from hpc_dynamo.errors import ConfigError

SLURM_FIELDS = ("gpu_type", "partition", "account", "qos", "constraint", "reservation")
NODE_FIELDS = ("gpus_per_node", "cpus_per_node", "memory_gb_per_node")


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
    # Their GPUs are not placed by this run.
    engine = replace(config.engine, device=Device.cpu)
    return replace(config, route=route, engine=engine, topology=_route_topology(route))


def _route_topology(route: Route) -> Topology:
    if route.workers:
        pool = Pool(workers=len(route.workers))
        return Topology(TopologyKind.aggregated, nodes=1, aggregated=pool)
    prefill, decode = Pool(workers=len(route.prefill)), Pool(workers=len(route.decode))
    return Topology(TopologyKind.disaggregated, nodes=1, prefill=prefill, decode=decode)
