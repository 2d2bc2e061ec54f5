"""Ports and GPUs of this node's workers."""

import os
import socket
from dataclasses import dataclass

from hpc_dynamo.bootstrap.address import interface_with_address
from hpc_dynamo.config import Config, with_worker_options
from hpc_dynamo.engines import EngineAdapter, Placement, ShardRendezvous, engine
from hpc_dynamo.errors import EngineError
from hpc_dynamo.topology import Worker


@dataclass(frozen=True)
class NodePlacer:
    """Places shards of workers on this node. Every placement has new ports."""

    config: Config
    address: str  # address of this node
    token: str  # required by its engines
    events_folder: str  # private folder of this node, see process.node_folder
    log_folder: str

    def leader(self, worker: Worker) -> Placement:
        """Place a worker, or its first shard; then also choose the rendezvous of all shards."""
        adapter = self._engine(worker)
        own = adapter.port_count
        if len(worker.shards) == 1:
            return self._place(worker, free_ports(self.address, own))
        ports = free_ports(self.address, own + adapter.rendezvous_port_count)
        rendezvous = ShardRendezvous(self.address, ports[own:])
        return self._place(worker, ports[:own], rendezvous=rendezvous)

    def follower(self, worker: Worker, index: int, rendezvous: ShardRendezvous) -> Placement:
        """Place shard `index` of a worker, which is not its first."""
        ports = free_ports(self.address, self._engine(worker).port_count)
        return self._place(worker, ports, index, rendezvous)

    def _engine(self, worker: Worker) -> EngineAdapter:
        return engine(with_worker_options(self.config, worker.model, worker.role).engine.name)

    def _place(
        self,
        worker: Worker,
        ports: tuple[int, ...],
        index: int = 0,
        rendezvous: ShardRendezvous | None = None,
    ) -> Placement:
        return Placement(
            worker,
            self.address,
            ports,
            visible_gpus(worker.shards[index].gpus),
            self.token,
            self.events_folder,
            self.log_folder,
            index,
            rendezvous,
            interface_with_address(self.address),
        )


def visible_gpus(indexes: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names for CUDA_VISIBLE_DEVICES of GPUs that the plan counts from 0.

    Slurm may have given the job other GPUs of the node. Raises EngineError if it gave too few.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else [str(i) for i in range(max(indexes, default=-1) + 1)]
    if any(index >= len(names) for index in indexes):
        what = f"the plan needs GPU {max(indexes)} of a node, this job sees {len(names)} ({given})"
        raise EngineError(what, hint="set cluster.gpus_per_node to what Slurm gives a node")
    return tuple(names[index] for index in indexes)


def free_ports(address: str, count: int) -> tuple[int, ...]:
    """Return ports that are free now and differ.

    If another process takes a port before the engine does, the engine is restarted with other
    ports, see PortTaken.
    """
    reserved = [socket.create_server((address, 0)) for _ in range(count)]
    ports = tuple(int(s.getsockname()[1]) for s in reserved)
    for s in reserved:
        s.close()
    return ports
