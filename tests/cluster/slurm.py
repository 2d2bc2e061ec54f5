"""A real Slurm cluster on one machine, every node with its own namespaces.

examples, from the top of the checkout, as root on Debian:
    python -m tests.cluster.slurm install      install the Debian packages, once
    python -m tests.cluster.slurm shell        start a cluster and a shell that uses it
    python -m tests.cluster.slurm up --gpus 2  start a cluster and print its environment
    python -m tests.cluster.slurm down         stop it in any state; --all: every cluster
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from types import FrameType

from tests.cluster.cluster import SlurmCluster, all_names, sweep
from tests.cluster.conf import Spec
from tests.cluster.install import install, unavailable
from tests.cluster.namespaces import ClusterError

__all__ = ["ClusterError", "SlurmCluster", "Spec", "sweep", "unavailable"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.cluster.slurm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("install", "up", "down", "shell"))
    parser.add_argument("--name", default=Spec.name, help="nodes are called <name>1, <name>2, …")
    parser.add_argument("--nodes", type=int, default=Spec.nodes)
    parser.add_argument("--gpus", type=int, default=Spec.gpus, help="fake GPUs per node")
    parser.add_argument("--keep", action="store_true", help="shell: leave the cluster running")
    parser.add_argument("--all", action="store_true", help="down: every cluster on this machine")
    return parser.parse_args()


def _exports(cluster: SlurmCluster) -> str:
    lines = (f"export {key}={shlex.quote(value)}" for key, value in cluster.env.items())
    return "\n".join(lines)


def _up(cluster: SlurmCluster) -> str:
    cluster.up()
    return _exports(cluster)


def _down(names: list[str]) -> str:
    for name in names:
        SlurmCluster(Spec(name)).down()
    return f"stopped: {', '.join(names) or 'no cluster was running'}"


def _shell(cluster: SlurmCluster, keep: bool) -> str:
    """Run a shell; stop the cluster when the shell ends or this process gets a signal."""
    if keep:
        cluster.up()
        _run_shell(cluster)
        return f"{_exports(cluster)}\n# later: {_command('down', cluster)}"
    _leave_on_signals()
    with cluster:
        _run_shell(cluster)
    return f"cluster {cluster.spec.name} is down"


def _command(command: str, cluster: SlurmCluster) -> str:
    return f"python -m tests.cluster.slurm {command} --name {cluster.spec.name}"


def _run_shell(cluster: SlurmCluster) -> None:
    spec = cluster.spec
    print(
        f"Slurm cluster {spec.name}: {', '.join(cluster.nodes)}, with {spec.cpus} CPUs, "
        f"{spec.memory_mb} MB and {spec.gpus} GPUs each.\n"
        f"The nodes share all files of this machine except /tmp and /dev/shm.\n"
        f"Try:  sinfo   |   srun -N{spec.nodes} hostname   |   squeue\n"
        f"Logs: {spec.state}/*.log, {spec.state}/{spec.name}*/*.log.  Leave with: exit",
        flush=True,
    )
    # Ctrl-C is for the shell. Unlike SIG_IGN, a handler is not inherited by the child.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        shell = os.environ.get("SHELL", "/bin/sh")
        subprocess.run([shell], env={**os.environ, **cluster.env}, check=False)
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack, so that the cluster is stopped."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def main() -> None:
    arguments = _arguments()
    try:
        spec = Spec(arguments.name, arguments.nodes, arguments.gpus)
        if arguments.command == "install":
            print(install())
        elif arguments.command == "down":
            print(_down(all_names() if arguments.all else [spec.name]))
        elif arguments.command == "up":
            print(_up(SlurmCluster(spec)))
        else:
            print(_shell(SlurmCluster(spec), arguments.keep))
    except (ClusterError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
