"""Requirements of the test cluster: Debian packages, programs and namespaces."""

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge", "libopenmpi-dev", "openmpi-bin", "iproute2")
# Container runtimes for an ordinary user; without recommended packages, which add 400 MB.
CONTAINER_PACKAGES = ("charliecloud-runtime", "podman", "crun", "uidmap")
_CONTAINER_PROGRAMS = ("ch-run", "podman", "crun")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "mpirun", "ip", "nsenter")
_SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # daemons live in sbin


def missing_programs() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]


def missing_containers() -> str:
    """Return the container runtimes that are not installed and how to get them, or an empty text.
    The suite does not install them."""
    missing = [name for name in _CONTAINER_PROGRAMS if not shutil.which(name, path=_PATH)]
    install = f"apt-get install --no-install-recommends {' '.join(CONTAINER_PACKAGES)}"
    return f"needs {', '.join(missing)}: {install}" if missing else ""


def unavailable() -> str:
    """Return the reason why the cluster cannot run here, or an empty text."""
    if reason := not_installable():
        return reason
    if missing := missing_programs():
        hint = "as root: python -m tests.cluster.slurm install"
        return f"the Slurm test cluster needs {', '.join(missing)}; {hint}"
    freezer = "mount -t cgroup -o freezer none /mnt"
    probe = subprocess.run(
        ("unshare", *_SPACES, "sh", "-c", freezer), capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return f"the Slurm test cluster cannot create namespaces here: {probe.stderr.strip()}"
    return ""


def not_installable() -> str:
    """Return the reason why the packages cannot be installed here, or an empty text."""
    if not Path("/etc/debian_version").exists():
        return "the Slurm test cluster needs Debian"
    if os.geteuid() != 0:
        return "the Slurm test cluster creates network namespaces and must run as root"
    return ""


def install() -> str:
    """Install missing packages with apt-get and return a report."""
    if reason := not_installable():
        raise SystemExit(reason)
    if not missing_programs():
        return "Slurm and Open MPI are already installed"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for action in (("update",), ("install", "--yes", *PACKAGES)):
        print("apt-get", *action, flush=True)
        subprocess.run(("apt-get", *action), env=env, check=True)
    return f"installed: {' '.join(PACKAGES)}"
