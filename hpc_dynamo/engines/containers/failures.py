"""Known failures of container programs: signs in the log, and what to try."""

MOUNTS = "model.path and engine.container.mounts must be there on every node"
WRITABLE = (
    "engine.container.options=['--write-fake'] (Charliecloud 0.36 or later), or '--write' with a "
    "folder of your own as the image: folders to mount do not exist in it"
)

KNOWN_FAILURES = {
    "apptainer cannot be run": (
        "cluster.slurm.setup=['module load apptainer'], with your site's name of the module"
    ),
    "ch-run cannot be run": (
        "cluster.slurm.setup=['module load charliecloud'], with your site's name of the module"
    ),
    "podman: not found": "install Podman on every node, or engine.container.kind=none",
    "enroot cannot be run": (
        "install Enroot on every node (Pyxis needs it), or engine.container.kind=none"
    ),
    "could not open image": "engine.container.image must be a file that every node sees",
    "[ERROR] No such file or directory: ": "engine.container.image must be there on every node",
    "mount source ": MOUNTS,
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
    "enroot-mount: failed to mount": MOUNTS,
    "can't bind: source not found": MOUNTS,
    "can't bind: destination not found": WRITABLE,
    "can't mkdir: ": WRITABLE,
    "unrecognized option '--write-fake'": (
        "engine.container.options=['--write'] with a folder of your own as the image: this "
        "Charliecloud is older than 0.36"
    ),
    "can't execve(2): ": "engine.python must be a path inside the image",
    "rootfs-overlay: creating overlay failed": (
        "a folder as image must belong to you, group included: `chown -R USER:GROUP FOLDER`, or "
        "copy it"
    ),
    "cgroups in hybrid mode not supported": (
        '`runtime = "runc"` in the section [engine] of ~/.config/containers/containers.conf'
    ),
    "unresolvable CDI devices": (
        "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` on every node, as root"
    ),
    "Error: statfs ": MOUNTS,
    "executable file not found in $PATH": "engine.python must be a path inside the image",
    "not found in $PATH: No such file": "engine.python must be a path inside the image",
}
