"""What adapters share for workers over several nodes.

One process a node, each a part of the worker: the first serves HTTP, all meet at `Place.meeting`.
"""

from collections.abc import Iterator
from typing import Any

from hpc_dynamo.config import Config, Pool, Role
from hpc_dynamo.engines.contract import Placement
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker


def multi_node_workers(plan: Plan) -> Iterator[Worker]:
    """Workers over several nodes, one of each role: those of a role are alike."""
    wide = {worker.role: worker for worker in reversed(plan.workers) if len(worker.shards) > 1}
    yield from wide.values()


def pool_of(config: Config, role: Role) -> Pool:
    """The sizes of its workers."""
    return dict(config.topology.pools)[role]


def gpus_per_replica(pool: Pool) -> int:
    """GPUs that hold the model once."""
    return pool.tensor_parallel * pool.pipeline_parallel


def replicas_per_shard(pool: Pool, worker: Worker) -> tuple[int, ...]:
    """How many replicas each part holds; empty where a replica is itself spread over nodes."""
    sizes = [divmod(len(shard.gpus), gpus_per_replica(pool)) for shard in worker.shards]
    return () if any(rest for _, rest in sizes) else tuple(count for count, _ in sizes)


def require_equal_shards(name: str, config: Config, worker: Worker) -> None:
    """For engines that count as many ranks on each node. Raises ConfigError."""
    sizes = [len(shard.gpus) for shard in worker.shards]
    if min(sizes) != max(sizes):
        pool, nodes = pool_of(config, worker.role), len(sizes)
        what = f"topology.{worker.role}: {pool.gpus} GPUs a worker are {sizes} on {nodes} nodes"
        hint = f"sizes (tensor x pipeline x data parallel) whose product {nodes} divides"
        raise ConfigError(f"{what}; engine={name} wants as many on each", hint=hint)


def node_options(place: Placement) -> dict[str, Any]:
    """The options by which PyTorch's launchers, and engines after them, know their nodes."""
    if place.rendezvous is None:
        return {}
    return {
        "nnodes": len(place.worker.shards),
        "node-rank": place.shard_index,
        "master-addr": place.rendezvous.address,
        "master-port": place.rendezvous.ports[0],
    }


def network_environment(place: Placement) -> dict[str, str]:
    """Holds gloo and NCCL to the job's network: of themselves they take what the host's name
    resolves to, often loopback, or the first interface that there is.

    Source: PyTorch's ProcessGroupGloo.cpp, NCCL's documentation of NCCL_SOCKET_IFNAME (`=`: not
    a prefix).
    """
    if place.rendezvous is None or not place.interface:
        return {}
    name = place.interface
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
