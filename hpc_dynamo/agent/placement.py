"""What of this node a worker gets: its GPUs and ports."""

import os
import socket

from hpc_dynamo.errors import EngineError


def visible_gpus(indexes: tuple[int, ...]) -> tuple[str, ...]:
    """The plan counts a node's GPUs from 0; Slurm may have given the job others."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else [str(i) for i in range(max(indexes, default=-1) + 1)]
    if any(index >= len(names) for index in indexes):
        what = f"the plan needs GPU {max(indexes)} of a node, this job sees {len(names)} ({given})"
        raise EngineError(what, hint="cluster.gpus_per_node must be what Slurm gives a node")
    return tuple(names[index] for index in indexes)


def free_ports(address: str, count: int) -> tuple[int, ...]:
    """Ports that are free now, all held until all are found so that they differ.

    Another process can still be quicker than the engine; then the engine dies with "address
    already in use" and its next life gets others.
    """
    held = [socket.create_server((address, 0)) for _ in range(count)]
    ports = tuple(int(s.getsockname()[1]) for s in held)
    for s in held:
        s.close()
    return ports
