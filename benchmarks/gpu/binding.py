"""Print the GPUs that PyTorch sees in the environment of a worker on each GPU, and of a CPU worker.

python -m benchmarks.gpu.binding
"""

import json
import os
import subprocess
import sys

from benchmarks.gpu.machine import gpu_ids
from hpc_dynamo.config import Device, Engine, Role
from hpc_dynamo.engines import Placement
from hpc_dynamo.engines.environment import device_environment
from hpc_dynamo.topology import Shard, Worker

SCRIPT = """
import json, torch
seen = range(torch.cuda.device_count())
print(json.dumps([f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in seen]))
"""


def main() -> None:
    workers = [_seen(Device.cuda, str(index)) for index in range(len(gpu_ids()))]
    print(json.dumps({"workers": workers, "cpu": _seen(Device.cpu)}))


def _seen(device: Device, *gpus: str) -> list[str]:
    """Return the unique ids of the GPUs in the environment of a worker."""
    worker = Worker(0, Role.aggregated, (Shard(0, tuple(map(int, gpus))),))
    placement = Placement(worker, "127.0.0.1", (), gpus, token="")
    env = os.environ | device_environment(Engine(device=device), placement)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
