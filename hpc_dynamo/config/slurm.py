"""Fields of `cluster.slurm`."""

from dataclasses import dataclass, field
from enum import StrEnum


class Mixed(StrEnum):
    """How nodes of several kinds are asked for."""

    auto = "auto"  # one heterogeneous job where Slurm's scheduler can start it
    hetjob = "hetjob"  # one job of several components, which start together
    jobs = "jobs"  # a job for each kind, which meet in the run folder


@dataclass(frozen=True)
class Slurm:
    """What sbatch and srun are asked for. Unset fields are left to the site's defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    time: str = "01:00:00"  # minutes, HH:MM:SS or D-HH:MM:SS
    exclusive: bool = False
    gpu_option: str = "gpus-per-node"  # or "gres", for sites that want --gres=gpu:N
    gpu_type: str | None = None
    signal_before_end_s: int = 90
    mpi: str = "auto"  # srun --mpi=…; auto: pmix where srun has it
    extra: dict[str, str] = field(default_factory=dict)  # further #SBATCH lines, name: value
    srun_args: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # shell lines before the agents, such as `module load cuda`
    mixed: Mixed = Mixed.auto  # how nodes of several kinds are asked for
