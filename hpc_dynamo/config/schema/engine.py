"""Fields of `engine`: the inference engine, its options and its container."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpc_dynamo.config.schema.setting import section, setting
from hpc_dynamo.config.schema.topology import Role


class KvLoadFailurePolicy(StrEnum):
    """Reaction of a decode worker to a KV cache that did not arrive."""

    recompute = "recompute"  # the decode worker computes the prompt itself
    fail = "fail"  # the decode worker fails the request; another pair of workers is tried


class Device(StrEnum):
    """Device that an engine computes on."""

    cuda = "cuda"
    cpu = "cpu"


class ContainerKind(StrEnum):
    """Container runtime."""

    none = "none"
    apptainer = "apptainer"
    charliecloud = "charliecloud"
    enroot = "enroot"  # also for clusters with Pyxis
    podman = "podman"  # rootless
    pyxis = "pyxis"  # `srun --container-image`: each engine is a Slurm step

    @property
    def program(self) -> str:
        """Program of the runtime, which the nodes must have."""
        return {"charliecloud": "ch-run", "pyxis": "srun"}.get(self, self)


@dataclass(frozen=True)
class Container:
    """Container around each engine. The agents of hpc-dynamo run outside of it."""

    kind: ContainerKind = setting(ContainerKind.none, "Container runtime.")
    image: str = setting(
        "",
        "Image on a shared disk: a file; a folder for Podman, or for Charliecloud. Apptainer and "
        "Pyxis also accept `docker://…`.",
        path=True,
    )
    mounts: tuple[str, ...] = setting(
        (), "Additional mounts: SRC, SRC:DST or SRC:DST:ro.", path=True
    )
    options: tuple[str, ...] = setting(
        (),
        "Additional options of `apptainer exec`, `ch-run`, `enroot start`, `podman run` or `srun`.",
    )


@dataclass(frozen=True)
class RoleOptions:
    """Options and environment of the workers of one role. They override those of all workers."""

    args: dict[str, Any] = setting({}, "Options of the engine's server.")
    env: dict[str, str] = setting({}, "Environment variables.")


@dataclass(frozen=True)
class Engine:
    """Inference engine and the resources of its workers."""

    name: str = setting("vllm", "Engine: vllm, sglang, trtllm or simulator.")
    version: str = setting(
        "",
        "Version of the engine, such as 1.3: its options are checked, and newer features are not "
        "used. Empty: the newest version that hpc-dynamo knows, and options of all versions.",
    )
    device: Device = setting(Device.cuda, "Device that the engine computes on.")
    python: str = setting(
        "",
        "Python interpreter of the engine's environment. Empty: that of hpc-dynamo, or python3 of "
        "the image.",
        path=True,
    )
    container: Container = section(Container())
    args: dict[str, Any] = setting({}, "Options of the engine's server, passed through.")
    check_options: bool = setting(
        True, "Refuse names in `args` that no recorded version of the engine has as an option."
    )
    env: dict[str, str] = setting({}, "Environment variables of every worker.")
    prefill: RoleOptions = section(RoleOptions(), "Options of prefill workers only.")
    decode: RoleOptions = section(RoleOptions(), "Options of decode workers only.")
    aggregated: RoleOptions = section(RoleOptions(), "Options of aggregated workers only.")
    allowed_media: tuple[str, ...] = setting(
        (),
        "Sources of images, audio and video that requests may name: hosts, `*.DOMAIN` or `*`, and "
        "absolute folders. Requests may always hold media as `data:` URLs.",
    )
    max_num_seqs: int = setting(
        256,
        "Sequences that one worker decodes at the same time, shared by its data-parallel ranks.",
        unit="sequences",
        ge=1,
    )
    cpus: int = setting(
        4, "CPUs for each GPU of a worker; CPUs of a worker that uses no GPU.", unit="CPUs", ge=1
    )
    memory_gb: float = setting(
        32.0,
        "Host memory for each GPU of a worker; memory of a worker that uses no GPU.",
        unit="GB",
        gt=0,
    )
    kv_host_cache_gb: float = setting(
        0.0,
        "Host memory for KV blocks that the device cache of a worker evicts: for each GPU, or of a "
        "worker that uses no GPU. Requested from Slurm in addition to `memory_gb`. 0: none.",
        unit="GB",
        ge=0,
    )
    ready_timeout_s: float = setting(
        1800.0, "Maximum time from the start of a worker until it is ready.", unit="s", gt=0
    )
    stop_timeout_s: float = setting(
        20.0, "Time that a worker has to stop before it is killed.", unit="s", gt=0
    )
    hang_timeout_s: float = setting(
        20.0,
        "A ready worker that makes no progress for this time hangs and is restarted. Longer if it "
        "was that slow before, or while it computes.",
        unit="s",
        ge=1,
    )
    max_restarts: int = setting(
        2,
        "Number of times within `restart_window_min` that a failed worker is restarted.",
        ge=0,
        was="restarts",
    )
    restart_window_min: float = setting(
        60.0,
        "Failures of a worker that was ready since do not count after this time.",
        unit="min",
        gt=0,
    )
    sleep_mode: bool = setting(
        False,
        "Allow workers to sleep. A sleeping worker frees the memory of its device.",
        was="sleep",
    )
    kv_load_failure_policy: KvLoadFailurePolicy | None = setting(
        None,
        "Reaction to a KV cache that did not arrive. Null: recompute, if the engine supports it.",
        was="kv_load_failure",
    )

    def role_options(self, role: Role) -> RoleOptions:
        """Return the options that the workers of a role get in addition to `args` and `env`."""
        return {
            Role.prefill: self.prefill,
            Role.decode: self.decode,
            Role.aggregated: self.aggregated,
        }[role]
