"""Engine in a container of rootless Podman: `podman run …`.

`podman run` passes SIGTERM on and exits with the engine's code. The engine is a child of conmon, in
a session of its own. The supervisor ends both, as it ends every helper that left its session.

Podman saves the state of a container, with its environment, below --root. For a folder as image,
this is in the private folder of the node: home folders on network file systems serve several nodes
at the same time, which Podman does not expect. Named images are in the user's own store.

Source: podman-run(1), podman(1) of Podman 4.3.
"""

from dataclasses import replace
from pathlib import Path

from hpc_dynamo.config import Config, Device
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.containers.mounts import all_mounts, with_destination

# Without a process that holds the user namespace, Podman starts itself a second time inside a new
# one. The first process would then end at SIGTERM before the container has ended. `podman unshare`
# starts that process. As root it fails, and is not needed.
START = 'podman unshare true 2>/dev/null; exec podman "$@"'
# The file with its process id is in XDG_RUNTIME_DIR. Jobs often have none.
START_PRIVATELY = (
    'mkdir -p -m 700 "$XDG_RUNTIME_DIR"; podman "$1" "$2" unshare true 2>/dev/null; '
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
    is_folder = container.image.startswith("/")
    own = f"{placement.events_folder}/podman-{placement.worker.rank}-{placement.shard_index}"
    store = (f"--root={own}/root", f"--runroot={own}/run") if is_folder else ()
    # A container that outlived its supervisor is ended by --replace. Its name is that of one worker
    # of one run.
    name = "-".join(Path(own).parts[-2:])
    run = ("run", "--rm", "--replace", f"--name={name}", "--log-driver=none", "--http-proxy=false")
    gpus = (GPUS,) if config.engine.device is Device.cuda else ()
    volumes = [f"--volume={with_destination(each)}" for each in all_mounts(config, placement)]
    names = [f"--env={each}" for each in command.env]  # the values come from Podman's environment
    # `:O` is a writable layer, which is removed with the container.
    image = (
        ("--rootfs", f"{container.image}:O") if is_folder else ("--entrypoint=", container.image)
    )
    options = (*run, *HOST, *ACCESS, *gpus, *volumes, *names, *container.options)
    start = ("sh", "-c", START_PRIVATELY if is_folder else START, "podman")
    argv = (*start, *store, *GLOBAL, *options, *image, *command.argv)
    runtime = {"XDG_RUNTIME_DIR": own} if is_folder else {}
    return replace(command, argv=argv, env=runtime | dict(command.env))
