"""Engine commands inside a container: `apptainer exec …`, `enroot start …`, or options of srun for
Pyxis.

The agent stays outside, where Slurm's commands are, and starts the container in place of the
engine. The container gets only the environment variables of the command, never through a command
line, since they contain the run's token. All containers share the host's network and process ids,
so ports and signals work as without them.

Source: apptainer (action_flags.go, util/env/create.go); enroot (runtime.sh, 98-nvidia.sh); pyxis
(args.c, pyxis_slurmstepd.c).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpc_dynamo.config import Config, ContainerKind, Device, Engine, Model
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.diagnostics import find_hint
from hpc_dynamo.engines.environment import INJECTED
from hpc_dynamo.process.child import SAFE_PATH

# First program of a step, by its path: engines may not import launch.
STEP_TASK = Path(__file__).parents[1] / "launch/mpi_rank.py"

# Replaces the command script of the image: that of a Docker image runs the image's entrypoint
# first.
RC_NAME, RC = "enroot-rc.sh", 'exec "$@"\n'

KNOWN_FAILURES = {
    "apptainer cannot be run": (
        "cluster.slurm.setup=['module load apptainer'], with your site's name of the module"
    ),
    "enroot cannot be run": (
        "install Enroot on every node (Pyxis needs it), or engine.container.kind=none"
    ),
    "could not open image": "engine.container.image must be a file that every node sees",
    "[ERROR] No such file or directory: ": "engine.container.image must be there on every node",
    "mount source ": "model.path and engine.container.mounts must be there on every node",
    "Command not found: squashfuse": (
        "`srun --ntasks-per-node=1 enroot create --name NAME IMAGE`, engine.container.image=NAME"
    ),
    "unrecognized option '--container-": (
        "Pyxis in every node's Slurm, or engine.container.kind=enroot or apptainer"
    ),
    "pyxis: failed to import docker image": (
        "`enroot import -o /shared/engine.sqsh docker://IMAGE` on a machine that reaches the "
        "registry, then that file as engine.container.image"
    ),
    "enroot-mount: failed to mount": (
        "model.path and engine.container.mounts must be there on every node"
    ),
    "executable file not found in $PATH": "engine.python must be a path inside the image",
}


def in_container(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the command inside the configured container; unchanged without one."""
    if config.engine.container.kind is not ContainerKind.none:
        # The host's own variable stays outside.
        command = replace(command, env=SAFE_PATH | dict(command.env))
    match config.engine.container.kind:
        case ContainerKind.apptainer:
            return _apptainer(config, placement, command)
        case ContainerKind.enroot:
            return _enroot(config, placement, command)
        case ContainerKind.pyxis:
            return _pyxis(config, placement, command)
    return command


def diagnose(engine: Engine, log_tail: str) -> str:
    """Return what to try if the container failed; empty if unknown or without a container."""
    if engine.container.kind is ContainerKind.none:
        return ""
    return find_hint(KNOWN_FAILURES, log_tail)


def _apptainer(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    container = config.engine.container
    gpus = ["--nv"] if config.engine.device is Device.cuda else []
    mounts = (*_required_mounts(config.model, placement), *container.mounts)
    binds = [f"--bind={mount}" for mount in mounts]
    # Without --no-eval a shell would expand `$` in the values of the environment.
    start = ["apptainer", "exec", "--cleanenv", "--no-eval", *gpus, *binds, *container.options]
    env = {f"APPTAINERENV_{name}": value for name, value in command.env.items()}
    return replace(command, argv=(*start, container.image, *command.argv), env=env)


def _enroot(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    container = config.engine.container
    env = {**_nvidia(config.engine), **command.env}
    mounts = [f"--mount={mount}" for mount in _required_mounts(config.model, placement)]
    mounts += [f"--mount={_enroot_mount(mount)}" for mount in container.mounts]
    names = [f"--env={name}" for name in env]  # the values come from Enroot's own environment
    start = ["enroot", "start", "--rw", f"--rc={placement.log_folder}/{RC_NAME}", *mounts, *names]
    argv = (*start, *container.options, container.image, *command.argv)
    # A login shell would read the image's profile, which may change PATH.
    return EngineCommand(argv, env | {"ENROOT_LOGIN_SHELL": "no"}, {**command.files, RC_NAME: RC})


def _pyxis(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return a command with srun's options for Pyxis.

    Pyxis passes exported variables of the host that the image does not set. Only those of the
    command are exported, and HOME, by which Enroot finds its folders.
    """
    container = config.engine.container
    env = {**_nvidia(config.engine), **command.env}
    names = ",".join(name for name in env if name != "CUDA_VISIBLE_DEVICES")  # see mpi_rank.py
    mounts = (str(STEP_TASK), *_required_mounts(config.model, placement), *container.mounts)
    args = (
        f"--export=HOME,{names}",
        f"--container-image={container.image}",
        f"--container-mounts={','.join(map(_pyxis_mount, mounts))}",
        f"--container-env={names}",  # the values of the host, not of the image
        "--no-container-mount-home",
        "--no-container-entrypoint",
        *container.options,
    )
    return replace(command, env=env, container_args=args)


def _required_mounts(model: Model, placement: Placement) -> Iterator[str]:
    """Yield the paths that a command may contain; each has the same path inside."""
    yield str(INJECTED)
    yield from filter(None, (placement.log_folder, placement.events_folder))
    paths = (model.path, *model.lora.values())
    yield from (path for path in paths if path.startswith("/"))


def _nvidia(engine: Engine) -> dict[str, str]:
    """Return the variables by which Enroot's hook mounts the driver. CUDA_VISIBLE_DEVICES selects
    the GPUs."""
    if engine.device is not Device.cuda:
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    return {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def _pyxis_mount(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"


def _enroot_mount(mount: str) -> str:
    """Convert SRC:DST:ro to Enroot's form, fields of fstab(5)."""
    parts = mount.split(":")
    return mount if len(parts) < 3 else f"{parts[0]}:{parts[1]}:none:rbind,x-create=auto,{parts[2]}"
