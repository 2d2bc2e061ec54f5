"""Where a run happens, and who starts it."""

from dataclasses import dataclass, field
from enum import StrEnum

from hpc_dynamo.config.hardware import Hardware


class Launcher(StrEnum):
    """Who starts the agents: Slurm, this machine, or the allocation that we are already in."""

    auto = "auto"
    slurm = "slurm"
    allocation = "allocation"
    local = "local"


class Heterogeneous(StrEnum):
    """How nodes of several kinds are asked for."""

    auto = "auto"  # one heterogeneous job where Slurm's scheduler can start it
    hetjob = "hetjob"  # one job of several components, which start together
    jobs = "jobs"  # a job for each kind, which meet in the run folder


class BootstrapMethod(StrEnum):
    """How agents learn each other's addresses.

    MPI has to be asked for: where one of its ranks crashes as it starts (Open MPI 4.1.4 under Slurm
    22.05, 5 of 38 starts on a loaded machine), PMIx has Slurm end the step before anything can be
    done about it.
    """

    tcp = "tcp"
    mpi = "mpi"


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
    gpu_option: str = "gpus-per-node"  # or gres, gpus, gpus-per-task; none: no line about GPUs
    memory_option: str = "mem"  # or mem-per-cpu; none: no line about memory
    gpu_type: str | None = None
    signal_before_end_s: int = 90
    mpi: str = "auto"  # srun --mpi=…; auto: none, and pmix where MPI is used and srun has it
    # Any other option of sbatch, NAME: VALUE. True is a flag, false leaves the option out.
    extra: dict[str, str] = field(default_factory=dict)
    srun_args: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # shell lines before the agents, such as `module load cuda`
    heterogeneous: Heterogeneous = Heterogeneous.auto  # how nodes of several kinds are asked for


@dataclass(frozen=True)
class Bootstrap:
    """The exchange of addresses at the start of a job."""

    method: BootstrapMethod = BootstrapMethod.tcp
    timeout_s: float = 120.0
    mpi_timeout_s: float = 60.0


@dataclass(frozen=True)
class Cluster:
    """Where the run happens."""

    launcher: Launcher = Launcher.auto
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None  # None: what the fullest node's workers need
    memory_gb_per_node: float | None = None  # 0: all memory of a node
    heartbeat_timeout_s: float = 30.0  # head or agent not heard of for so long is gone
    interface: str | None = None  # network interface of the job, such as ib0 or hsn0
    preflight: bool = True  # a look at each node before anything is loaded there
    hardware: dict[str, Hardware] = field(default_factory=dict)  # kinds of nodes, by their names
    slurm: Slurm = Slurm()
    bootstrap: Bootstrap = Bootstrap()
