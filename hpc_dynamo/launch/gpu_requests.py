"""GPU requests in `cluster.slurm.extra`, compared with the layout. Pure.

Source: sbatch(1), --gpus-per-node, --gpus, --gpus-per-task, --gres, --tres-per-task.
"""

import re
from collections.abc import Iterator

from hpc_dynamo.config import Slurm
from hpc_dynamo.config.sbatch_options import extra_options
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan

COUNTS = ("gpus-per-node", "gpus-per-task", "gpus")  # [TYPE:]N[,[TYPE:]N…]
LISTS = ("gres", "tres-per-task")  # gpu[:TYPE][:N] among other resources


def check_gpu_requests(slurm: Slurm, plan: Plan) -> None:
    """Raise ConfigError if `extra` requests fewer GPUs than the layout uses on each of these
    identical nodes. A request for more is accepted."""
    for option, text, count in _requests(slurm):
        # The other options count GPUs of a node, or of its only task.
        nodes = plan.nodes if option == "gpus" else 1
        if count >= plan.gpus_per_node * nodes:
            continue
        of = f"all {nodes} nodes" if option == "gpus" else "a node"
        field = f"cluster.hardware.{plan.hardware}" if plan.hardware else "cluster"
        has = f"{field}.gpus_per_node={plan.gpus_per_node}"
        what = f"cluster.slurm.extra.{option}={text} requests {count} GPUs on {of}, "
        fewer = count // nodes or 1
        hint = f"{field}.gpus_per_node={fewer} for a smaller layout, or leave the option out"
        raise ConfigError(f"{what}but the layout has {has}", hint=hint)


def _requests(slurm: Slurm) -> Iterator[tuple[str, str, int]]:
    """Yield option, value and number of GPUs of each request whose number can be read."""
    for option, text in extra_options(slurm).items():
        counts = list[int | None]()
        if option in COUNTS:
            counts = [_trailing_count(item) for item in str(text).split(",")]
        elif option in LISTS:
            items = (item.strip().removeprefix("gres/") for item in str(text).split(","))
            counts = [_trailing_count(i, default=1) for i in items if re.match(r"gpu(?![^:=])", i)]
        known = [count for count in counts if count is not None]
        if counts and len(known) == len(counts):
            yield option, str(text), sum(known)


def _trailing_count(item: str, default: int | None = None) -> int | None:
    """Return the number that ends `a100:4`, `gpu=4` or `4`; `default` without a number."""
    number = re.split("[:=]", item.strip())[-1]
    return int(number) if number.isdecimal() else default
