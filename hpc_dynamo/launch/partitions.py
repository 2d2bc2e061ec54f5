"""Resources of the nodes of Slurm's partitions, as reported by sinfo."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpc_dynamo.config import Cluster, walltime_minutes
from hpc_dynamo.config.sbatch_options import extra_options
from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch.environment import DEFAULTS, for_commands
from hpc_dynamo.launch.slurm import run_command

DEADLINE_S = 10.0
# Partition; CPUs and MB of a node; GRES; number of nodes; time limit; features; maximum CPUs of a
# node in the partition; minimum and maximum nodes of a job.
FORMAT = "%P|%c|%m|%G|%D|%l|%f|%B|%s"
GPU = re.compile(r"\bgpu(?::(?P<type>[^:,()]+))??:(?P<count>\d+)(?=[(,]|$)")
NUMBER = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)\+?$")
UNLIMITED = ("infinite", "UNLIMITED", "n/a", "(null)", "")


@dataclass(frozen=True)
class PartitionNodes:
    """Identical nodes of one partition. In `time_min` and `max_nodes_per_job` None means no
    limit."""

    partition: str
    count: int
    cpus: int
    memory_mb: int
    gpus: tuple[tuple[str, int], ...] = ()  # type, number
    features: tuple[str, ...] = ()
    time_min: int | None = None
    max_nodes_per_job: int | None = None
    is_default: bool = False

    def gpus_of(self, gpu_type: str | None) -> int:
        return sum(count for kind, count in self.gpus if gpu_type in (None, kind))


def query_partitions() -> tuple[PartitionNodes, ...]:
    """Query sinfo. Empty if Slurm is not installed or does not answer in time."""
    try:
        argv = ("sinfo", "--all", "--exact", "--noheader", f"--format={FORMAT}")
        return tuple(parse_sinfo(run_command(argv, for_commands(), DEADLINE_S)))
    except (LaunchError, MissingDependency):
        return ()


def parse_sinfo(listed: str) -> Iterator[PartitionNodes]:
    """Parse the output of sinfo in `FORMAT`; other lines are skipped."""
    for line in listed.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == FORMAT.count("|") + 1 and NUMBER.match(fields[1]):
            yield _nodes(*fields)


def _nodes(
    name: str, cpus: str, memory: str, gres: str, count: str, time: str, features: str, *rest: str
) -> PartitionNodes:
    most_cpus, sizes = rest
    limit = [int(most_cpus)] if most_cpus.isdigit() else []
    last = sizes.rpartition("-")[2]
    return PartitionNodes(
        partition=name.removesuffix("*"),
        count=_number(count),
        cpus=min([_number(cpus), *limit]),
        memory_mb=_number(memory),
        gpus=tuple((found["type"] or "", int(found["count"])) for found in GPU.finditer(gres)),
        features=() if features in UNLIMITED else tuple(features.split(",")),
        time_min=None if time in UNLIMITED else walltime_minutes(time),
        max_nodes_per_job=int(last) if last.isdigit() else None,
        is_default=name.endswith("*"),
    )


def _number(text: str) -> int:
    """Parse a number; Slurm writes 1024 as 1K."""
    found = NUMBER.match(text)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0


def requested_nodes(cluster: Cluster, nodes: Sequence[PartitionNodes]) -> list[PartitionNodes]:
    """Return the nodes of the requested partitions, or of the default one."""
    extra = extra_options(cluster.slurm).get("partition")
    requested = extra or cluster.slurm.partition or os.environ.get(DEFAULTS["partition"])
    if not requested:
        return [n for n in nodes if n.is_default]
    return [n for n in nodes if n.partition in str(requested).split(",")]


def eligible_nodes(cluster: Cluster, nodes: Sequence[PartitionNodes]) -> list[PartitionNodes]:
    """Return the nodes with the requested features. Of all constraint expressions only a list of
    features is understood."""
    features = re.split(r"[&,]", cluster.slurm.constraint or "")
    plain = [f for f in features if re.fullmatch(r"[\w.-]+", f)]
    if len(plain) != len(features):
        plain = []
    return [n for n in requested_nodes(cluster, nodes) if set(plain) <= set(n.features)]
