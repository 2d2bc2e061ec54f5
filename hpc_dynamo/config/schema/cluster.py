"""Fields of `cluster`: nodes, Slurm and the start of the job."""

from dataclasses import dataclass
from enum import StrEnum

from hpc_dynamo.config.schema.setting import section, setting

GPU_OPTIONS = ("gpus-per-node", "gres", "gpus", "gpus-per-task", "none")
MEMORY_OPTIONS = ("mem", "mem-per-cpu", "none")
HEARTBEAT_TIMEOUT_MIN_S = 3.0  # a few heartbeats


class Launcher(StrEnum):
    """Mechanism that starts the agents."""

    auto = "auto"  # the enclosing allocation, else Slurm if it responds, else this machine
    slurm = "slurm"
    allocation = "allocation"
    local = "local"


class Heterogeneous(StrEnum):
    """Form of a job on nodes of several kinds."""

    auto = "auto"  # one heterogeneous job, if the scheduler of the cluster supports it
    hetjob = "hetjob"  # one heterogeneous job, whose components start together
    jobs = "jobs"  # one job for each kind of nodes; they connect through the run folder


class BootstrapMethod(StrEnum):
    """Mechanism by which agents learn each other's addresses."""

    auto = "auto"  # MPI on several nodes of a Slurm job, else TCP
    tcp = "tcp"
    mpi = "mpi"  # as auto, and `doctor` reports a fault if MPI does not work


@dataclass(frozen=True)
class Hardware:
    """Slurm request for one kind of nodes. Fields that are not set are those of `cluster`."""

    nodes: int | None = setting(
        None, "Number of nodes. Null: the fewest that hold the workers.", unit="nodes", ge=1
    )
    gpus_per_node: int | None = setting(None, "GPUs of each node.", unit="GPUs", ge=1)
    gpu_type: str | None = setting(None, "GPU type, such as a100.")
    cpus_per_node: int | None = setting(None, "CPUs requested on each node.", unit="CPUs", ge=1)
    memory_gb_per_node: float | None = setting(
        None, "Memory requested on each node. 0: all of it.", unit="GB", ge=0
    )
    partition: str | None = setting(None, "Slurm partition.")
    account: str | None = setting(None, "Slurm account.")
    qos: str | None = setting(None, "Slurm QOS.")
    constraint: str | None = setting(None, "Slurm node features.")
    reservation: str | None = setting(None, "Slurm reservation.")
    extra: dict[str, str] = setting({}, "Other sbatch options, added to `cluster.slurm.extra`.")


@dataclass(frozen=True)
class Slurm:
    """Options of sbatch and srun. Fields that are not set are left to the defaults of the site."""

    partition: str | None = setting(None, "Partition.")
    account: str | None = setting(None, "Account.")
    qos: str | None = setting(None, "Quality of service.")
    constraint: str | None = setting(None, "Node features.")
    reservation: str | None = setting(None, "Reservation.")
    time: str = setting("01:00:00", "Walltime: minutes, HH:MM:SS or D-HH:MM:SS.")
    exclusive: bool = setting(False, "Do not share nodes with other jobs.")
    gpu_option: str = setting(
        "gpus-per-node", "Option that requests GPUs. none: no such option.", choices=GPU_OPTIONS
    )
    memory_option: str = setting(
        "mem", "Option that requests memory. none: no such option.", choices=MEMORY_OPTIONS
    )
    gpu_type: str | None = setting(None, "GPU type, such as a100.")
    signal_before_end_s: int = setting(
        90, "Time before the walltime limit at which Slurm signals the job.", unit="s", ge=0
    )
    mpi: str = setting(
        "auto", "Value of `srun --mpi`. auto: none, or pmix if MPI is used and srun supports it."
    )
    extra: dict[str, str] = setting(
        {}, "Any other sbatch option, NAME: VALUE. true: a flag; false: leave the option out."
    )
    srun_args: tuple[str, ...] = setting((), "Additional options of srun.")
    setup: tuple[str, ...] = setting(
        (), "Shell lines to run before the agents, such as `module load cuda`."
    )
    heterogeneous: Heterogeneous = setting(
        Heterogeneous.auto,
        "Form of a job on nodes of several kinds: hetjob (one heterogeneous job), jobs (one job "
        "for each kind), or auto.",
        was="mixed",
    )


@dataclass(frozen=True)
class Bootstrap:
    """Exchange of addresses at the start of a job."""

    method: BootstrapMethod = setting(
        BootstrapMethod.auto,
        "Exchange in an MPI step, or over TCP and the run folder. auto: MPI on several nodes of a "
        "Slurm job. TCP takes over if MPI is missing or fails.",
    )
    timeout_s: float = setting(
        120.0, "Maximum time until all agents have connected.", unit="s", gt=0
    )
    mpi_timeout_s: float = setting(
        3.0,
        "Time of the MPI step after all agents have connected over TCP, and at least as long as "
        "they took. After it, TCP is used.",
        unit="s",
        gt=0,
    )


@dataclass(frozen=True)
class Cluster:
    """Nodes of the job and the way it is started."""

    launcher: Launcher = setting(
        Launcher.auto, "Start by Slurm, in the enclosing allocation, or on this machine (local)."
    )
    gpus_per_node: int | None = setting(None, "GPUs of each node.", unit="GPUs", ge=0)
    cpus_per_node: int | None = setting(
        None,
        "CPUs requested on each node. Null: as many as the workers of the fullest node need.",
        unit="CPUs",
        ge=1,
    )
    memory_gb_per_node: float | None = setting(
        None,
        "Memory requested on each node. Null: as much as the workers need; 0: all of it.",
        unit="GB",
        ge=0,
    )
    heartbeat_timeout_s: float = setting(
        30.0,
        "A node that is silent for this time gets no requests until it is back.",
        unit="s",
        ge=HEARTBEAT_TIMEOUT_MIN_S,
        was="silence_s",
    )
    reconnect_timeout_s: float = setting(
        120.0,
        "Time for which an agent keeps its engines without contact to the head. A node that is "
        "silent for this time is lost.",
        unit="s",
        ge=HEARTBEAT_TIMEOUT_MIN_S,
    )
    interface: str | None = setting(None, "Network interface of the job, such as ib0 or hsn0.")
    tries: int = setting(
        3,
        "Number of jobs to try if some nodes fail at the start. The next job excludes them.",
        unit="jobs",
        ge=1,
    )
    spare_nodes: int = setting(
        0,
        "Additional nodes of the job. They run the workers of nodes that fail.",
        unit="nodes",
        ge=0,
    )
    preflight: bool = setting(True, "Check each node before a model is loaded there.")
    hardware: dict[str, Hardware] = setting({}, "Kinds of nodes, by names of your choice.")
    slurm: Slurm = section(Slurm())
    bootstrap: Bootstrap = section(Bootstrap())
