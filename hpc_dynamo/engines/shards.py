"""Helpers of adapters for workers over several nodes.

One process runs on each node, one shard of the worker. The first shard serves HTTP, and all
connect at `Placement.rendezvous`.
"""

from collections.abc import Iterator
from typing import Any

from hpc_dynamo.engines.adapter import Placement
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker


def multi_node_workers(plan: Plan) -> Iterator[Worker]:
    """Yield one multi-node worker of each role; the others of a role have the same sizes."""
    wide = {worker.role: worker for worker in reversed(plan.workers) if len(worker.shards) > 1}
    yield from wide.values()


def replicas_per_shard(worker: Worker) -> tuple[int, ...]:
    """Return the number of whole replicas on each shard; empty if a replica spans nodes."""
    sizes = [divmod(len(shard.gpus), worker.parallel.replica) for shard in worker.shards]
    return () if any(rest for _, rest in sizes) else tuple(count for count, _ in sizes)


def require_equal_shards(name: str, worker: Worker) -> None:
    """Raise ConfigError if the shards of a worker differ in size; engine `name` needs equal
    ones."""
    sizes = [len(shard.gpus) for shard in worker.shards]
    if min(sizes) != max(sizes):
        gpus, nodes = worker.parallel.gpus, len(sizes)
        what = f"topology.{worker.role}: {gpus} GPUs per worker are {sizes} on {nodes} nodes"
        hint = "tensor_parallel, pipeline_parallel and data_parallel whose product is a multiple "
        hint += f"of {nodes}"
        raise ConfigError(f"{what}; engine={name} needs the same number on each", hint=hint)


def node_options(placement: Placement) -> dict[str, Any]:
    """Return the options by which PyTorch's launchers, vLLM and the simulator find their nodes."""
    if placement.rendezvous is None:
        return {}
    return {
        "nnodes": len(placement.worker.shards),
        "node-rank": placement.shard_index,
        "master-addr": placement.rendezvous.address,
        "master-port": placement.rendezvous.ports[0],
    }
