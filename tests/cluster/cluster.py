"""A real Slurm cluster on one machine, every node with its own namespaces.

This machine is the login node: it runs munged and slurmctld. Each node runs slurmd and has its
own network, host name, /tmp, /dev/shm and process ids. A cluster writes only to `Spec.state`.
The subfolder `shared` plays the part of a parallel file system.
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
_NULL_DEVICE = os.makedev(1, 3)  # a fake GPU: Slurm only checks that it is a device


class SlurmCluster:
    """Start and stop one cluster. As a context manager it does both."""

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
        """Return the environment variables that Slurm commands need to reach this cluster."""
        return {"SLURM_CONF": f"{self.spec.state}/slurm.conf"}

    @property
    def shared(self) -> Path:
        """Return the folder that the login node and all nodes share; each has its own /tmp."""
        return self.spec.state / "shared"

    def address(self, node: str) -> str:
        """Return the IPv4 address of a node, or of this machine on the cluster's bridge."""
        return self.addresses[node]

    def up(self, timeout_s: float = 60, *, owner: int | None = None) -> None:
        """Start the cluster and wait until every node is idle.

        A cluster with the same name is stopped first. If `owner` is a process id, `sweep` stops
        the cluster after that process has ended. Raises ClusterError with the ends of the logs.
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
        """Remove all traces of the cluster, in any state, also one started by another process."""
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
        # Nodes also resolve the login node's own host name, which is SLURM_SUBMIT_HOST.
        own = conf.hosts({"localhost": "127.0.0.1", socket.gethostname(): login})
        (state / "hosts").write_text(own + names)
        (state / "init.sh").write_text(conf.init_sh(spec, _outside_tmp()))
        (state / "reboot.sh").write_text(conf.reboot_sh(spec))
        (state / "reboot.sh").chmod(0o755)
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
        """Return the states of the nodes, as named by sinfo."""
        return set(self.slurm("sinfo", "--noheader", "--Node", "--format=%T").split())

    def slurm(self, *argv: str | Path, timeout_s: float = 60) -> str:
        """Return the output of a Slurm command on the login node. Raises ClusterError."""
        variables = (f"{key}={value}" for key, value in self.env.items())
        return run("env", *variables, *argv, timeout_s=timeout_s)

    def on(self, node: str, *argv: str | Path) -> list[str]:
        """Return the command line that runs `argv` on a node, like a login shell there."""
        pid = namespaces.node_pid(self.spec, node)
        if pid is None:
            raise ClusterError(f"node {node} is not running; nodes: {', '.join(self.nodes)}")
        return namespaces.inside(pid, *argv)

    def cut(self, node: str) -> None:
        """Disconnect a node from the network: packets to it are dropped silently."""
        run("ip", "link", "set", self.spec.link(node), "down")

    def restore(self, node: str) -> None:
        run("ip", "link", "set", self.spec.link(node), "up")

    def kill(self, node: str) -> None:
        """Kill only the slurmd of a node. Its job steps keep running, as on a real cluster."""
        run(*self.on(node, "pkill", "-KILL", "-x", "slurmd"))

    def revive(self, node: str) -> None:
        """Start the slurmd of a node."""
        run(*self.on(node, "slurmd", "-N", node, "-f", self.spec.state / "slurm.conf"))

    def crash(self, node: str) -> None:
        """Kill every process of a node at once, like a power failure. `boot` restarts the node."""
        pid = namespaces.node_pid(self.spec, node)
        if pid is not None:
            namespaces.kill(pid)

    def boot(self, node: str, timeout_s: float = 30) -> None:
        """Start a node that is not running, and its slurmd."""
        ready = self.spec.state / node / "ready"
        ready.unlink(missing_ok=True)
        namespaces.start_node(self.spec, node)
        wait_until(ready.exists, timeout_s, f"start of node {node}")
        namespaces.plug_in(self.spec, node, self.addresses[node])
        self.revive(node)

    def log_tails(self, lines: int = 15) -> str:
        """Return the last lines of every log, for an error message."""
        logs = sorted(self.spec.state.glob("*.log")) + sorted(self.spec.state.glob("*/*.log"))
        tails = (f"--- {p}\n" + "\n".join(p.read_text().splitlines()[-lines:]) for p in logs)
        return "\n".join(tails)


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


def _outside_tmp() -> list[Path]:
    """Return folders under /tmp that nodes must see: the checkout and the interpreter."""
    wanted = {_CHECKOUT, Path(sys.prefix)}
    return sorted(path for path in wanted if path.is_relative_to("/tmp"))


def all_names() -> list[str]:
    """Return the names of all clusters that left traces on this machine."""
    prefix = Path(conf.STATE_PREFIX)
    found = prefix.parent.glob(f"{prefix.name}*")
    return sorted(path.name.removeprefix(prefix.name) for path in found)


def sweep() -> None:
    """Stop the clusters whose owner has ended, such as a test runner that was killed.

    Test runners that start together do so one after another.
    """
    # A lock of its own: `down` takes that of the machine.
    with namespaces.machine_lock(str(Path(conf.STATE_PREFIX).parent)):
        for name in all_names():
            cluster = SlurmCluster(Spec(name))
            owner = cluster.spec.state / "owner"
            if owner.exists() and not _alive(owner.read_text()):
                cluster.down()


def _alive(owner: str) -> bool:
    pid, _, _ = owner.partition(" ")
    return namespaces.identity(int(pid)) == owner
