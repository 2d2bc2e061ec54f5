"""Ways in which Slurm loses a node, or an administrator takes one."""

from collections.abc import Callable
from contextlib import suppress

from tests.cluster import namespaces
from tests.cluster.cluster import SlurmCluster
from tests.cluster.namespaces import ClusterError
from tests.support.runs import until

Failure = Callable[[SlurmCluster, str], object]


def set_down(cluster: SlurmCluster, node: str) -> None:
    cluster.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")


def drain(cluster: SlurmCluster, node: str) -> None:
    cluster.slurm("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")


def reboot(cluster: SlurmCluster, node: str) -> None:
    """Reboot a node at once, which ends its processes."""
    cluster.crash(node)
    cluster.boot(node)


def request_reboot(cluster: SlurmCluster, node: str) -> None:
    """Ask Slurm to reboot a node as soon as its jobs have ended."""
    cluster.slurm("scontrol", "reboot", "ASAP", node)


def restart_slurmd(cluster: SlurmCluster, node: str) -> None:
    cluster.kill(node)
    cluster.revive(node)


FAILURES: dict[str, Failure] = {
    "set down": set_down,
    "powered off": SlurmCluster.crash,
    "rebooted": reboot,
    "drained": drain,
    "slurmd restarted": restart_slurmd,
    "to be rebooted (`scontrol reboot ASAP`)": request_reboot,
}
HARMLESS = ("drained", "slurmd restarted", "to be rebooted (`scontrol reboot ASAP`)")


def resume(cluster: SlurmCluster, node: str) -> None:
    """Resume a node, unless it has already returned to service."""
    with suppress(ClusterError):
        cluster.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")


def repair(cluster: SlurmCluster) -> None:
    """Cancel all jobs and bring all nodes back."""
    cluster.slurm("scancel", "--user=root")
    for node in cluster.nodes:
        if namespaces.node_pid(cluster.spec, node) is None:
            cluster.boot(node)
        resume(cluster, node)
    until("all nodes idle", lambda: cluster.states() == {"idle"}, 60)


def job_field(cluster: SlurmCluster, job: str, name: str) -> str:
    """Return a field of a job, as scontrol shows it."""
    shown = cluster.slurm("scontrol", "show", "job", job).split()
    return next(word.partition("=")[2] for word in shown if word.startswith(f"{name}="))
