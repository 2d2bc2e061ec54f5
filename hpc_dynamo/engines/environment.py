"""Interpreter and environment variables of an engine process."""

import sys
from pathlib import Path

from hpc_dynamo.config import ContainerKind, Device, Engine
from hpc_dynamo.engines.adapter import Placement

# Folder of modules that engines import: API key checks and entry points.
INJECTED = Path(__file__).parent / "injected"


def python_executable(engine: Engine) -> str:
    """Return the engine's Python: `engine.python`, or else this one, or `python3` of an image."""
    in_image = engine.container.kind is not ContainerKind.none
    return engine.python or ("python3" if in_image else sys.executable)


def python_path(engine: Engine) -> str:
    """Return PYTHONPATH with INJECTED before the user's own entries."""
    return ":".join(filter(None, (str(INJECTED), engine.env.get("PYTHONPATH"))))


def device_environment(engine: Engine, placement: Placement) -> dict[str, str]:
    """Return the variables that bind a worker to its GPUs, or hide all GPUs from a CPU worker.

    UCX listens on every interface that it finds. A CPU worker on loopback needs only loopback.
    """
    if engine.device is Device.cuda:
        return {"CUDA_VISIBLE_DEVICES": ",".join(placement.gpus)}
    loopback = {"UCX_NET_DEVICES": "lo"} if placement.address.startswith("127.") else {}
    return {"CUDA_VISIBLE_DEVICES": ""} | loopback


def network_environment(placement: Placement) -> dict[str, str]:
    """Return the variables that keep gloo and NCCL on the job's network.

    By default gloo uses the interface of the host name, often loopback, and NCCL the first that it
    finds. Source: PyTorch's ProcessGroupGloo.cpp; NCCL's documentation of NCCL_SOCKET_IFNAME, in
    which `=` means an exact name.
    """
    if placement.rendezvous is None or not placement.interface:
        return {}
    name = placement.interface
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
