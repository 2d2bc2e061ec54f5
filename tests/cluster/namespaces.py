"""Processes, links, host names and cgroups of the test cluster, found by their names."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

from tests.cluster.conf import Spec

_HOSTS = Path("/etc/hosts")
_ENV = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"}
_DAEMONS = {"munged", "slurmctld", "unshare", "sh"}  # processes outside the nodes


class ClusterError(Exception):
    """An operation of the test cluster failed. The text ends with the ends of its logs."""


def run(*argv: str | Path, timeout_s: float = 60) -> str:
    """Return the standard output of a command. Raises ClusterError with its output if it fails."""
    command = " ".join(map(str, argv))
    try:
        done = subprocess.run(
            [str(a) for a in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd="/",
            env=_ENV,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{command}` did not end within {timeout_s:g} s") from error
    if done.returncode:
        raise ClusterError(f"`{command}` failed ({done.returncode}): {done.stdout}{done.stderr}")
    return done.stdout


def wait_until(true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll a state of other programs that send no events."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)


@contextmanager
def machine_lock(folder: str = "/run") -> Iterator[None]:
    """Lock for choosing a subnet and editing /etc/hosts. Locks a folder and leaves no file."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _argv(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []  # the process has ended


def processes() -> dict[int, list[str]]:
    """Return command lines by process id, without zombies and kernel threads."""
    pids = (p.name for p in Path("/proc").iterdir() if p.name.isdigit())
    return {int(pid): argv for pid in pids if (argv := _argv(pid))}


def find(match: Callable[[list[str]], bool]) -> list[int]:
    """Return the ids of the processes whose command line matches."""
    return [pid for pid, argv in processes().items() if match(argv)]


def daemons(spec: Spec) -> list[int]:
    """Return the ids of the daemons on the login node and of the first process of each node."""
    ours = f"{spec.state}/"
    return find(lambda argv: Path(argv[0]).name in _DAEMONS and any(ours in a for a in argv[1:]))


def node_pid(spec: Spec, node: str) -> int | None:
    """Return the id of a node's first process, or None."""
    pids = find(lambda argv: argv == ["sh", f"{spec.state}/init.sh", node])
    return pids[0] if pids else None


def kill_all(spec: Spec, timeout_s: float = 30) -> None:
    """Kill the cluster's processes. The kernel then kills all other processes of the nodes."""
    while pids := daemons(spec):
        for pid in pids:
            kill(pid, timeout_s)


def kill(pid: int, timeout_s: float = 30) -> None:
    """Kill a process and wait for its end. A node's first process ends after all its others."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the process has ended
    wait_until(lambda: _stat(pid)[0] in "ZX", timeout_s, f"end of process {pid}")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on, or `X` if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"]


def identity(pid: int) -> str:
    """Return process id and start time, which distinguish reused ids. Empty if it has ended."""
    stat = _stat(pid)
    return "" if stat[0] in "ZX" else f"{pid} {stat[19]}"


def free_subnet() -> IPv4Network:
    """Return a /24 network that overlaps no route of this machine."""
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [IPv4Network(r["dst"], strict=False) for r in routes if r["dst"] != "default"]
    for third in range(256):
        subnet = IPv4Network(f"10.83.{third}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise ClusterError("no free /24 in 10.83.0.0/16 for the cluster's bridge")


def add_bridge(spec: Spec, address: str) -> None:
    run("ip", "link", "add", spec.bridge, "type", "bridge", "forward_delay", "0")
    run("ip", "address", "add", f"{address}/24", "dev", spec.bridge)
    run("ip", "link", "set", spec.bridge, "up")


def start_node(spec: Spec, node: str) -> None:
    """Start a node in its own namespaces: network, mounts, host name, shared memory, processes."""
    spaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
    init = ("sh", f"{spec.state}/init.sh", node)
    with (spec.state / node / "init.log").open("ab") as log:
        argv = ("setsid", "--fork", "unshare", *spaces, *init)
        subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=_ENV, check=True
        )


def start_controller(spec: Spec) -> None:
    """Start slurmctld as host `<name>0`. It listens on the address of its host name."""
    names = f"hostname {spec.login} && mount --bind {spec.state}/hosts /etc/hosts"
    daemon = f"exec slurmctld -c -f {spec.state}/slurm.conf"
    run("unshare", "--mount", "--uts", "sh", "-c", f"{names} && {daemon}")


def plug_in(spec: Spec, node: str, address: str) -> None:
    """Connect a running node to the bridge."""
    link, pid = spec.link(node), node_pid(spec, node)
    peer = ("peer", "name", "eth0", "netns", str(pid))
    run("ip", "link", "add", link, "master", spec.bridge, "type", "veth", *peer)
    run("ip", "link", "set", link, "up")
    enter = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
    run(*enter, "address", "add", f"{address}/24", "dev", "eth0")
    run(*enter, "link", "set", "eth0", "up")


def inside(pid: int, *argv: str | Path) -> list[str]:
    """Return the command line that runs `argv` in the namespaces of a node's first process."""
    spaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
    return [str(a) for a in ("nsenter", f"--target={pid}", *spaces, "--", *argv)]


def remove_links(spec: Spec) -> None:
    """Remove the links of the nodes, then the bridge. Links may vanish with their namespace."""
    names = [link["ifname"] for link in json.loads(run("ip", "-json", "link"))]
    ours = [n for n in names if n.rstrip("0123456789") == spec.link(spec.name)]
    for name in [*ours, *({spec.bridge} & set(names))]:
        subprocess.run(("ip", "link", "delete", name), capture_output=True, check=False)


def add_names(spec: Spec, lines: str) -> None:
    """Add the nodes to /etc/hosts of the login node."""
    tag = _tag(spec)
    with machine_lock(), _HOSTS.open("a") as file:
        file.write("".join(f"{line} {tag}\n" for line in lines.splitlines()))


def remove_names(spec: Spec) -> None:
    """Remove the nodes from /etc/hosts, in place: in containers the file is a mount."""
    with machine_lock():
        lines = _HOSTS.read_text().splitlines(keepends=True)
        rest = [line for line in lines if not line.rstrip().endswith(_tag(spec))]
        if rest != lines:
            _HOSTS.write_text("".join(rest))


def _tag(spec: Spec) -> str:
    return f"# {spec.state.name}"


def remove_cgroups(spec: Spec) -> None:
    """Remove the freezer cgroups `slurm_<node>` of slurmd, after mounting the freezer."""
    mount = "mount -t cgroup -o freezer none /mnt && cd /mnt"
    ours = f"slurm_{spec.name}[0-9] slurm_{spec.name}[0-9][0-9]"
    sweep = (
        f'for d in {ours}; do [ ! -d "$d" ] || find "$d" -depth -type d -exec rmdir {{}} \\;; done'
    )
    script = f'{mount} && {sweep}; [ -z "$(find {ours} 2>/dev/null)" ]'

    def gone() -> bool:
        argv = ("unshare", "--mount", "sh", "-c", script)
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    wait_until(gone, 30, f"removal of the cgroups of cluster {spec.name}")
