"""Whether this machine can run the test cluster, and the Debian packages that make it able to."""

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge", "libopenmpi-dev", "openmpi-bin", "iproute2")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "mpirun", "ip", "nsenter")
_SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # daemons live in sbin


def missing_programs() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]


def unavailable() -> str:
    """Why the cluster cannot be brought up here; empty if it can."""
    if reason := not_installable():
        return reason
    if missing := missing_programs():
        hint = "as root: python -m tests.cluster.slurm install"
        return f"the Slurm test cluster lacks {', '.join(missing)}; {hint}"
    freezer = "mount -t cgroup -o freezer none /mnt"
    probe = subprocess.run(
        ("unshare", *_SPACES, "sh", "-c", freezer), capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return f"the Slurm test cluster may not make namespaces here: {probe.stderr.strip()}"
    return ""


def not_installable() -> str:
    """Why the packages cannot be installed here; empty if they can."""
    if not Path("/etc/debian_version").exists():
        return "the Slurm test cluster runs on Debian; this is another system"
    if os.geteuid() != 0:
        return "the Slurm test cluster makes network namespaces and must run as root"
    return ""


def install() -> str:
    """Installs what is missing with apt-get and says what it did."""
    if reason := not_installable():
        raise SystemExit(reason)
    if not missing_programs():
        return "everything is installed already"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for action in (("update",), ("install", "--yes", *PACKAGES)):
        print("apt-get", *action, flush=True)
        subprocess.run(("apt-get", *action), env=env, check=True)
    return f"installed: {' '.join(PACKAGES)}"
