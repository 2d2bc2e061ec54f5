"""An engine's command inside a container: `apptainer exec …` or `enroot start …` before it, or the
options by which Pyxis puts a step of srun's into one.

The agent stays outside, where Slurm's commands are, and starts the container as it would start
the engine. Nothing of the host's environment comes in but what the command asks for, and that
never by a command line: it holds the run's key. All of them share the host's network and
process ids, so ports and signals are as without them.

Source: apptainer (action_flags.go, util/env/create.go); enroot (runtime.sh, 98-nvidia.sh);
pyxis (args.c, pyxis_slurmstepd.c).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpc_dynamo.config import Config, ContainerKind, Device
from hpc_dynamo.engines.contract import Command, Placement
from hpc_dynamo.engines.diagnostics import find_hint
from hpc_dynamo.engines.vllm import GUARD
from hpc_dynamo.process.child import SAFE_PATH

# What a step runs first, by its path: the engines do not know of the launchers.
STEP_TASK = Path(__file__).parents[1] / "launch/mpi_rank.py"

# Of an image made from Docker's the command script would put the image's entrypoint before ours.
RC_NAME, RC = "enroot-rc.sh", 'exec "$@"\n'

KNOWN_FAILURES = {
    "apptainer cannot be run": "cluster.slurm.setup=['module load apptainer'], as your site has it",
    "enroot cannot be run": "Enroot on every node (Pyxis needs it), or engine.container.kind=none",
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
        "`enroot import -o /shared/engine.sqsh docker://IMAGE` where the registry is reached, then "
        "that file as engine.container.image"
    ),
    "enroot-mount: failed to mount": (
        "model.path and engine.container.mounts must be there on every node"
    ),
    "executable file not found in $PATH": "engine.python must be a path inside of the image",
}


def in_container(config: Config, place: Placement, command: Command) -> Command:
    """The same process in the container that the configuration asks for, if it does."""
    if config.engine.container.kind is not ContainerKind.none:  # the host's stays outside
        command = replace(command, env=SAFE_PATH | dict(command.env))
    match config.engine.container.kind:
        case ContainerKind.apptainer:
            return _apptainer(config, place, command)
        case ContainerKind.enroot:
            return _enroot(config, place, command)
        case ContainerKind.pyxis:
            return _pyxis(config, place, command)
    return command


def diagnose(config: Config, log_tail: str) -> str:
    """What to try where the container is to blame; empty where unknown or without one."""
    if config.engine.container.kind is ContainerKind.none:
        return ""
    return find_hint(KNOWN_FAILURES, log_tail)


def _apptainer(config: Config, place: Placement, command: Command) -> Command:
    container = config.engine.container
    gpus = ["--nv"] if config.engine.device is Device.cuda else []
    binds = [f"--bind={mount}" for mount in (*_required_mounts(config, place), *container.mounts)]
    # Without --no-eval a shell would look for `$` in the values of the environment.
    words = ["apptainer", "exec", "--cleanenv", "--no-eval", *gpus, *binds, *container.options]
    env = {f"APPTAINERENV_{name}": value for name, value in command.env.items()}
    return replace(command, argv=(*words, container.image, *command.argv), env=env)


def _enroot(config: Config, place: Placement, command: Command) -> Command:
    container = config.engine.container
    env = {**_nvidia(config), **command.env}
    mounts = [f"--mount={mount}" for mount in _required_mounts(config, place)]
    mounts += [f"--mount={_enroot_mount(mount)}" for mount in container.mounts]
    names = [f"--env={name}" for name in env]  # their values come from Enroot's own environment
    words = ["enroot", "start", "--rw", f"--rc={place.log_folder}/{RC_NAME}", *mounts, *names]
    argv = (*words, *container.options, container.image, *command.argv)
    # A login shell would read the image's profile, which may set PATH anew.
    return Command(argv, env | {"ENROOT_LOGIN_SHELL": "no"}, {**command.files, RC_NAME: RC})


def _pyxis(config: Config, place: Placement, command: Command) -> Command:
    """What the host exports would come in where the image has no value of its own: we export only
    what we set, and HOME, by which Enroot finds its folders."""
    container = config.engine.container
    env = {**_nvidia(config), **command.env}
    names = ",".join(name for name in env if name != "CUDA_VISIBLE_DEVICES")  # see rank.py
    mounts = (str(STEP_TASK), *_required_mounts(config, place), *container.mounts)
    args = (
        f"--export=HOME,{names}",
        f"--container-image={container.image}",
        f"--container-mounts={','.join(map(_pyxis_mount, mounts))}",
        f"--container-env={names}",  # ours, not the image's
        "--no-container-mount-home",
        "--no-container-entrypoint",
        *container.options,
    )
    return replace(command, env=env, container_args=args)


def _required_mounts(config: Config, place: Placement) -> Iterator[str]:
    """What a command may name: each is at the same path inside."""
    yield str(GUARD)
    yield from filter(None, (place.log_folder, place.events_folder))
    paths = (config.model.path, *config.model.lora.values())
    yield from (path for path in paths if path.startswith("/"))


def _nvidia(config: Config) -> dict[str, str]:
    """Enroot's hook brings the driver in; which of the GPUs, CUDA_VISIBLE_DEVICES says."""
    if config.engine.device is not Device.cuda:
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    return {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def _pyxis_mount(mount: str) -> str:
    return mount if ":" in mount else f"{mount}:{mount}"


def _enroot_mount(mount: str) -> str:
    """SRC:DST:ro as Enroot has it: fields of fstab(5)."""
    parts = mount.split(":")
    return mount if len(parts) < 3 else f"{parts[0]}:{parts[1]}:none:rbind,x-create=auto,{parts[2]}"
