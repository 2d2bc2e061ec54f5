"""Requirements of the test cluster: Debian packages, programs and namespaces."""

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge", "libopenmpi-dev", "openmpi-bin", "iproute2")
# Container runtimes for an ordinary user. Recommended packages would add 400 MB.
CONTAINER_PACKAGES = ("charliecloud-runtime", "podman", "crun", "uidmap")
_NO_RECOMMENDED = "--no-install-recommends"
_HINT = "as root: python -m tests.cluster.slurm install"
_CONTAINER_PROGRAMS = ("ch-run", "podman", "crun")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "mpirun", "ip", "nsenter")
_SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # daemons live in sbin


def missing_programs() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]


def missing_containers() -> str:
    """Return the missing container runtimes and how to install them, or an empty text."""
    missing = [name for name in _CONTAINER_PROGRAMS if not shutil.which(name, path=_PATH)]
    return f"needs {', '.join(missing)}; {_HINT}" if missing else ""


def missing_packages() -> list[tuple[str, ...]]:
    """Return the arguments of each `apt-get install` that is needed."""
    slurm = PACKAGES if missing_programs() else ()
    containers = (_NO_RECOMMENDED, *CONTAINER_PACKAGES) if missing_containers() else ()
    return [words for words in (slurm, containers) if words]


def unavailable() -> str:
    """Return the reason why the cluster cannot run here, or an empty text."""
    if reason := not_installable():
        return reason
    if missing := missing_programs():
        return f"the Slurm test cluster needs {', '.join(missing)}; {_HINT}"
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
    missing = missing_packages()
    if not missing:
        return "Slurm, Open MPI, Charliecloud and Podman are already installed"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for action in (("update",), *(("install", "--yes", *words) for words in missing)):
        print("apt-get", *action, flush=True)
        subprocess.run(("apt-get", *action), env=env, check=True)
    return f"installed: {' '.join(package for words in missing for package in words)}"
