"""Checks of `cluster.slurm` and of the Slurm fields of `cluster.hardware`."""

import re
from collections.abc import Mapping

from hpc_dynamo.config.sbatch_options import FIELDS, WITH_VALUE, option_name, option_value
from hpc_dynamo.config.schema.cluster import Cluster, Hardware, Slurm
from hpc_dynamo.errors import ConfigError

_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?$")


def check_slurm(cluster: Cluster) -> None:
    """Check the sbatch options and GPU types of all kinds of nodes."""
    given: dict[str, Slurm | Hardware] = {"cluster.slurm": cluster.slurm}
    given |= {f"cluster.hardware.{name}": kind for name, kind in cluster.hardware.items()}
    for section, values in given.items():
        _check_extra(values.extra, f"{section}.extra")
        _check_gpu_type(values.gpu_type, f"{section}.gpu_type")


def _check_extra(extra: Mapping[str, str], where: str) -> None:
    """Refuse options that the layout depends on, and options that lack a value."""
    for name, value in extra.items():
        option = option_name(name)
        if option in FIELDS:
            what = f"{where}.{name}={value}: hpc-dynamo sets this option"
            raise ConfigError(what, hint=FIELDS[option])
        if option in WITH_VALUE and option_value(value) is True:
            what = f"{where}.{name}={value}: --{option} needs a value"
            raise ConfigError(what, hint=f"{where}.{name}=VALUE; false leaves the option out")


def _check_gpu_type(gpu_type: str | None, where: str) -> None:
    """Refuse `gpu:a100:4`, which is a whole request."""
    parts = (gpu_type or "").split(":")
    if len(parts) < 2:
        return
    names = [part for part in parts if part != "gpu" and not part.isdigit()]
    hint = f"{where}={(names or ['a100'])[0]}, and cluster.gpus_per_node=4 for their number"
    raise ConfigError(f"{where}={gpu_type} is more than a type", hint=hint)


def walltime_minutes(text: str) -> int:
    """Return the minutes of a Slurm time, rounded up: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    The forms are those of `man sbatch`. Raises ConfigError for any other text, and for zero.
    """
    match = _TIME.match(text)
    if match is None:
        hint = "minutes, HH:MM:SS or D-HH:MM:SS, such as cluster.slurm.time=02:30:00"
        raise ConfigError(f"cluster.slurm.time={text} is not a time", hint=hint)
    days, parts = match["d"], [int(match[k]) for k in "abc" if match[k]]
    weights = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    seconds = sum(w * p for w, p in zip(weights, parts, strict=False)) + 86400 * int(days or 0)
    if seconds == 0:
        hint = "cluster.slurm.time=01:00:00"
        raise ConfigError(f"cluster.slurm.time={text} leaves no time", hint=hint)
    return -(-seconds // 60)
