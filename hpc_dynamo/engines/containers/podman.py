"""Engine in a container of rootless Podman: `podman run …`.

`podman run` passes SIGTERM on and exits with the engine's code. The engine is a child of conmon, in
a session of its own. The supervisor ends both, as it ends every helper that left its session.

The image is a folder. Podman saves the state of a container, with its environment, below --root, in
the private folder of the node. A user's own store does not suit jobs: in a home folder it serves
several nodes at the same time, which Podman does not expect. A killed container may block it.

Source: podman-run(1), podman(1) of Podman 4.3.
"""

from dataclasses import replace

from hpc_dynamo.config import Config, Device
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.containers.mounts import all_mounts, with_destination

# Without a process that holds the user namespace, Podman starts itself a second time inside a new
# one. The first process would then end at SIGTERM before the container has ended. Any command
# starts that process, such as `podman ps`. Its process id is in XDG_RUNTIME_DIR.
START = (
    'mkdir -p -m 700 "$XDG_RUNTIME_DIR"; podman "$1" "$2" ps --quiet >/dev/null 2>&1; '
    'exec podman "$@"'
)

# Process ids of the host need a cgroup manager; a job has no systemd of its user.
GLOBAL = ("--log-level=error", "--cgroup-manager=cgroupfs")
HOST = ("--pid=host", "--network=host", "--ipc=host", "--uts=host", "--ulimit=host")
# Devices of the host; system calls of NUMA and of shared memory; access by the user's groups.
ACCESS = (
    "--volume=/dev:/dev",
    "--security-opt=seccomp=unconfined",
    "--security-opt=label=disable",
    "--annotation=run.oci.keep_original_groups=1",
)
# By the Container Device Interface, which `nvidia-ctk cdi generate` describes on each node.
GPUS = "--device=nvidia.com/gpu=all"


def in_podman(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the command inside the container."""
    container = config.engine.container
    own = f"{placement.events_folder}/podman-{placement.worker.rank}-{placement.shard_index}"
    start = ("sh", "-c", START, "podman", f"--root={own}/root", f"--runroot={own}/run")
    # A container that outlived its supervisor is ended by --replace.
    run = ("run", "--rm", "--replace", "--name=engine", "--log-driver=none", "--http-proxy=false")
    gpus = (GPUS,) if config.engine.device is Device.cuda else ()
    volumes = [f"--volume={with_destination(each)}" for each in all_mounts(config, placement)]
    names = [f"--env={name}" for name in command.env]  # the values come from Podman's environment
    options = (*run, *HOST, *ACCESS, *gpus, *volumes, *names, *container.options)
    # `:O` is a writable layer, which is removed with the container.
    image = ("--rootfs", f"{container.image}:O")
    argv = (*start, *GLOBAL, *options, *image, *command.argv)
    return replace(command, argv=argv, env={"XDG_RUNTIME_DIR": own, **command.env})
