"""Nodes of one kind, where the nodes of a run are not all alike."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hardware:
    """What is asked for on nodes of this kind; unset fields are those of `cluster`."""

    nodes: int | None = None  # None: the fewest that hold its pools
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    cpus_per_node: int | None = None
    memory_gb_per_node: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    extra: dict[str, str] = field(default_factory=dict)  # on top of cluster.slurm.extra
