"""A real Slurm cluster on one machine, every node a host of its own.

This machine is the login node and runs munged and slurmctld; a node has its own network,
host name, /tmp, /dev/shm and process ids, and runs slurmd. All that a cluster writes is in one
folder (`Spec.state`); its subfolder `shared` is what a parallel file system is elsewhere.
"""

import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.cluster import conf, namespaces
from tests.cluster.conf import Spec
from tests.cluster.install import unavailable
from tests.cluster.namespaces import ClusterError, run, wait_until

_CHECKOUT = Path(__file__).resolve().parents[2]
_NULL_DEVICE = os.makedev(1, 3)  # a pretended GPU: Slurm only looks that it is a device


class SlurmCluster:
    """Brings one cluster up and down. As a context manager it does both."""

    def __init__(self, spec: Spec | None = None) -> None:
        self.spec = spec or Spec()
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> "SlurmCluster":
        self.up(owner=os.getpid())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.spec.node_names

    @property
    def env(self) -> dict[str, str]:
        """What sbatch, srun, squeue, scontrol and scancel need beside the usual environment."""
        return {"SLURM_CONF": f"{self.spec.state}/slurm.conf"}

    @property
    def shared(self) -> Path:
        """A folder that the login node and all nodes see. /tmp is another one on every node."""
        return self.spec.state / "shared"

    def address(self, node: str) -> str:
        """IPv4 address of a node, or of this machine on the cluster's bridge."""
        return self.addresses[node]

    def up(self, timeout_s: float = 60, *, owner: int | None = None) -> None:
        """Returns when every node is idle. Raises ClusterError with the ends of the logs.

        A cluster of the same name is taken down first. With an owner, `sweep` takes this one
        down once that process is dead.
        """
        if reason := unavailable():
            raise ClusterError(reason)
        self.down()
        self.spec.state.mkdir()
        if owner is not None:
            (self.spec.state / "owner").write_text(namespaces.identity(owner))
        try:
            self._up(timeout_s)
        except (ClusterError, OSError, subprocess.SubprocessError) as error:
            report = f"{error}\n{self.log_tails()}"
            self.down()
            raise ClusterError(f"cluster {self.spec.name} did not come up: {report}") from error
        except BaseException:
            self.down()
            raise

    def _up(self, timeout_s: float) -> None:
        spec = self.spec
        self._make_folders()
        with namespaces.machine_lock():
            subnet = namespaces.free_subnet()
            login, *rest = map(str, list(subnet.hosts())[: spec.nodes + 1])
            namespaces.add_bridge(spec, login)
        self.addresses = dict(zip((spec.login, *self.nodes), (login, *rest), strict=True))
        self._write_files()
        self._start_munged()
        namespaces.start_controller(spec)
        for node in self.nodes:
            self.boot(node)
        wait_until(lambda: self.states() == {"idle"}, timeout_s, "all nodes idle")

    def down(self) -> None:
        """Leaves nothing behind, from whatever state, also that of another process."""
        namespaces.kill_all(self.spec)
        namespaces.remove_links(self.spec)
        namespaces.remove_names(self.spec)
        if self.spec.state.exists():
            namespaces.remove_cgroups(self.spec)
            shutil.rmtree(self.spec.state)

    def _make_folders(self) -> None:
        state = self.spec.state
        folders = [state / node / sub for node in self.nodes for sub in ("spool", "tmp")]
        for folder in (*folders, state / "slurmctld", self.shared):
            folder.mkdir(parents=True)
        for open_to_all in (self.shared, *(state / node / "tmp" for node in self.nodes)):
            open_to_all.chmod(0o1777)

    def _write_files(self) -> None:
        spec, state = self.spec, self.spec.state
        login = self.addresses[spec.login]
        text = conf.slurm_conf(spec, self.addresses, _free_port(login))
        (state / "slurm.conf").write_text(text)
        (state / "cgroup.conf").write_text(conf.cgroup_conf())
        (state / "gres.conf").write_text(conf.gres_conf(spec))
        names = conf.hosts(self.addresses)
        # Nodes know the login node by the name it calls itself, too: SLURM_SUBMIT_HOST.
        own = conf.hosts({"localhost": "127.0.0.1", socket.gethostname(): login})
        (state / "hosts").write_text(own + names)
        (state / "init.sh").write_text(conf.init_sh(spec, _outside_tmp()))
        for device in conf.gpu_devices(spec):
            os.mknod(device, stat.S_IFCHR | 0o666, _NULL_DEVICE)
        namespaces.add_names(spec, names)

    def _start_munged(self) -> None:
        state = self.spec.state
        key = state / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        files["seed-file"] = "seed"
        run("munged", *(f"--{option}={state}/munge.{name}" for option, name in files.items()))

    def states(self) -> set[str]:
        """States that the nodes are in, as sinfo names them."""
        return set(self.slurm("sinfo", "--noheader", "--Node", "--format=%T").split())

    def slurm(self, *argv: str | Path, timeout_s: float = 60) -> str:
        """Output of a Slurm command on the login node. Raises ClusterError if it fails."""
        variables = (f"{key}={value}" for key, value in self.env.items())
        return run("env", *variables, *argv, timeout_s=timeout_s)

    def on(self, node: str, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` on a node, as if logged in there."""
        pid = namespaces.node_pid(self.spec, node)
        if pid is None:
            raise ClusterError(f"node {node} is not running; nodes: {', '.join(self.nodes)}")
        return namespaces.inside(pid, *argv)

    def cut(self, node: str) -> None:
        """Pulls a node's cable: nothing reaches it, nothing is refused either."""
        run("ip", "link", "set", self.spec.link(node), "down")

    def restore(self, node: str) -> None:
        run("ip", "link", "set", self.spec.link(node), "up")

    def kill(self, node: str) -> None:
        """Kills a node's slurmd alone; its job steps go on, as they do on real sites."""
        run(*self.on(node, "pkill", "-KILL", "-x", "slurmd"))

    def revive(self, node: str) -> None:
        """Starts a node's slurmd."""
        run(*self.on(node, "slurmd", "-N", node, "-f", self.spec.state / "slurm.conf"))

    def crash(self, node: str) -> None:
        """Power failure: all that runs on the node is dead at once. `boot` starts it anew."""
        pid = namespaces.node_pid(self.spec, node)
        if pid is not None:
            namespaces.kill(pid)

    def boot(self, node: str, timeout_s: float = 30) -> None:
        """Starts a node that is not running, and its slurmd."""
        ready = self.spec.state / node / "ready"
        ready.unlink(missing_ok=True)
        namespaces.start_node(self.spec, node)
        wait_until(ready.exists, timeout_s, f"start of node {node}")
        namespaces.plug_in(self.spec, node, self.addresses[node])
        self.revive(node)

    def log_tails(self, lines: int = 15) -> str:
        """The last lines of every log, for an error message."""
        logs = sorted(self.spec.state.glob("*.log")) + sorted(self.spec.state.glob("*/*.log"))
        tails = (f"--- {p}\n" + "\n".join(p.read_text().splitlines()[-lines:]) for p in logs)
        return "\n".join(tails)


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


def _outside_tmp() -> list[Path]:
    """Folders under /tmp that nodes must see all the same: the checkout and the interpreter."""
    wanted = {_CHECKOUT, Path(sys.prefix)}
    return sorted(path for path in wanted if path.is_relative_to("/tmp"))


def all_names() -> list[str]:
    """Names of the clusters that there is anything of on this machine."""
    prefix = Path(conf.STATE_PREFIX)
    found = prefix.parent.glob(f"{prefix.name}*")
    return sorted(path.name.removeprefix(prefix.name) for path in found)


def sweep() -> None:
    """Takes down the clusters whose owner is dead, say a test runner by `kill -9`."""
    for name in all_names():
        cluster = SlurmCluster(Spec(name))
        owner = cluster.spec.state / "owner"
        if owner.exists() and not _alive(owner.read_text()):
            cluster.down()


def _alive(owner: str) -> bool:
    pid, _, _ = owner.partition(" ")
    return namespaces.identity(int(pid)) == owner
