"""Engine in an Enroot container: `enroot start …`, or options of srun for Pyxis, which uses Enroot.

Source: enroot (runtime.sh, 98-nvidia.sh); pyxis (args.c, pyxis_slurmstepd.c).
"""

from dataclasses import replace
from pathlib import Path

from hpc_dynamo.config import Config, Device, Engine
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.containers.mounts import all_mounts, with_destination

# First program of a step, by its path: engines may not import launch.
STEP_TASK = Path(__file__).parents[2] / "launch/mpi_rank.py"

# Replaces the command script of the image: that of a Docker image runs the image's entrypoint
# first.
RC_NAME, RC = "enroot-rc.sh", 'exec "$@"\n'


def in_enroot(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the command inside the container."""
    container = config.engine.container
    env = {**_nvidia(config.engine), **command.env}
    mounts = [f"--mount={_fstab(mount)}" for mount in all_mounts(config, placement)]
    names = [f"--env={name}" for name in env]  # the values come from Enroot's own environment
    start = ["enroot", "start", "--rw", f"--rc={placement.log_folder}/{RC_NAME}", *mounts, *names]
    argv = (*start, *container.options, container.image, *command.argv)
    # A login shell would read the image's profile, which may change PATH.
    return EngineCommand(argv, env | {"ENROOT_LOGIN_SHELL": "no"}, {**command.files, RC_NAME: RC})


def in_pyxis(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return a command with srun's options for Pyxis.

    Pyxis passes exported variables of the host that the image does not set. Only those of the
    command are exported, and HOME, by which Enroot finds its folders.
    """
    container = config.engine.container
    env = {**_nvidia(config.engine), **command.env}
    names = ",".join(name for name in env if name != "CUDA_VISIBLE_DEVICES")  # see mpi_rank.py
    mounts = (str(STEP_TASK), *all_mounts(config, placement))
    args = (
        f"--export=HOME,{names}",
        f"--container-image={container.image}",
        f"--container-mounts={','.join(map(with_destination, mounts))}",
        f"--container-env={names}",  # the values of the host, not of the image
        "--no-container-mount-home",
        "--no-container-entrypoint",
        *container.options,
    )
    return replace(command, env=env, container_args=args)


def _nvidia(engine: Engine) -> dict[str, str]:
    """Return the variables by which Enroot's hook mounts the driver. CUDA_VISIBLE_DEVICES selects
    the GPUs."""
    if engine.device is not Device.cuda:
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    return {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def _fstab(mount: str) -> str:
    """Convert SRC:DST:ro to Enroot's form, fields of fstab(5)."""
    parts = mount.split(":")
    return mount if len(parts) < 3 else f"{parts[0]}:{parts[1]}:none:rbind,x-create=auto,{parts[2]}"
