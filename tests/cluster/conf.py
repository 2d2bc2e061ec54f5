"""Layout of the test cluster and the text of its configuration files. Pure functions."""

import re
from dataclasses import dataclass
from pathlib import Path

STATE_PREFIX = "/var/lib/hpc-dynamo-cluster-"
_NAME = re.compile(r"[a-z]([a-z0-9]{0,8}[a-z])?")


@dataclass(frozen=True)
class Spec:
    """Size of one cluster. Every name it uses on the machine follows from `name`.

    `down` can therefore clean up after a crash by name. Nodes are called `<name>1`, `<name>2`, …,
    so that two clusters never share a host name.
    """

    name: str = "node"
    nodes: int = 3
    gpus: int = 0  # per node
    cpus: int = 8  # per node; may exceed the host's
    memory_mb: int = 16_000  # per node; may exceed the host's
    kill_wait_s: int = 15  # from SIGTERM to SIGKILL
    slurmd_timeout_s: int = 60  # silence after which a node is DOWN and its jobs fail

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"cluster name {self.name!r}: up to 10 of a-z and 0-9, a letter first and last"
            )
        if not 1 <= self.nodes <= 99:
            raise ValueError(f"nodes={self.nodes}: 1 to 99")

    @property
    def state(self) -> Path:
        """Return the folder of all files of the cluster. /run is often mounted noexec."""
        return Path(f"{STATE_PREFIX}{self.name}")

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}{i}" for i in range(1, self.nodes + 1))

    @property
    def login(self) -> str:
        """Return the name of this machine in the cluster, the host name of slurmctld."""
        return f"{self.name}0"

    @property
    def bridge(self) -> str:
        return f"hd-{self.name}"

    def link(self, node: str) -> str:
        """Return the name of a node's network link on the login node (at most 15 characters)."""
        return f"hv-{node}"


def slurm_conf(spec: Spec, addresses: dict[str, str], port: int) -> str:
    """Return the text of `slurm.conf` for Slurm 22.05 or later.

    Args:
        addresses: host name to IPv4 address, of the login node and of every node.
        port: of slurmctld, free at the address of the login node.
    """
    gres = f" Gres=gpu:{spec.gpus}" if spec.gpus else ""
    nodes = "\n".join(
        f"NodeName={node} NodeAddr={addresses[node]} CPUs={spec.cpus} "
        f"RealMemory={spec.memory_mb} State=UNKNOWN{gres}"
        for node in spec.node_names
    )
    state = spec.state
    return f"""\
ClusterName={spec.name}
SlurmctldHost={spec.login}({addresses[spec.login]})
SlurmctldPort={port}
# Listen only on the bridge, which cannot be reached from other machines.
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
# Slurm delays a requeued job until its credentials expire, after two minutes by default.
AuthInfo=socket={state}/munge.socket,cred_expire=10
StateSaveLocation={state}/slurmctld
SlurmdSpoolDir={state}/%n/spool
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/%n/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/%n/slurmd.log

MpiDefault=none
# Processes that a task leaves behind are killed with its step, as on real clusters.
ProctrackType=proctrack/cgroup
# Tasks are not bound to CPUs: the nodes claim more CPUs than the machine has.
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
CompleteWait=0
KillWait={spec.kill_wait_s}
OverTimeLimit=0
JobRequeue=1
MessageTimeout=10
RebootProgram={state}/reboot.sh
SlurmdTimeout={spec.slurmd_timeout_s}
SlurmctldTimeout=30
UnkillableStepTimeout=30
ReturnToService=2

{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
{_kinds(spec)}"""


def _kinds(spec: Spec) -> str:
    """Return two partitions: `east` with the first node, and `west` with the others."""
    east, *west = spec.node_names
    named = {"east": [east], "west": west} if west else {}
    return "".join(f"PartitionName={p} Nodes={','.join(n)} State=UP\n" for p, n in named.items())


def reboot_sh(spec: Spec) -> str:
    """Return the program by which slurmd reboots an idle node: only slurmd itself is restarted."""
    restart = f'exec slurmd -b -N "$(hostname)" -f {spec.state}/slurm.conf'
    return f"#!/bin/sh\npkill -KILL -x slurmd\n{restart}\n"


def cgroup_conf() -> str:
    """Return `cgroup.conf`: the v1 plugin with only the freezer, mounted by `init_sh`.

    It tracks processes the same way on hosts that run cgroup v1 and v2, without systemd.
    """
    return "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainCores=no\n"


def gres_conf(spec: Spec) -> str:
    """Return the text of `gres.conf`. Slurm needs one character device per GPU."""
    devices = "".join(f"Name=gpu File={path}\n" for path in gpu_devices(spec))
    return f"AutoDetect=off\n{devices}"


def gpu_devices(spec: Spec) -> list[Path]:
    return [spec.state / f"gpu{i}" for i in range(spec.gpus)]


def hosts(addresses: dict[str, str]) -> str:
    """Return lines of /etc/hosts."""
    return "".join(f"{address} {host}\n" for host, address in addresses.items())


def init_sh(spec: Spec, shared: list[Path]) -> str:
    """Return the script of a node's first process. It gets the node's name as $1.

    It runs in its own namespaces and reaps orphans. When it is killed, the kernel removes the
    node's processes, mounts and interface. The file `ready` is created after the mounts.

    Args:
        shared: folders under /tmp that nodes can see although their /tmp is private.
    """
    keep = "\n".join(
        f"mkdir -p '$own{path}'; mount --rbind '{path}' '$own{path}'".replace("'", '"')
        for path in shared
    )
    return f"""\
set -e
own={spec.state}/$1
hostname $1
mount --bind {spec.state}/hosts /etc/hosts
{keep}
mount --rbind $own/tmp /tmp
mount -t tmpfs shm /dev/shm
# UCX reads /sys/class/net: a new sysfs lists only the interfaces of this node.
mount -t sysfs sysfs /sys
mount -t tmpfs cgroup /sys/fs/cgroup
mkdir /sys/fs/cgroup/freezer
mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer
ip link set lo up
touch $own/ready
while :; do sleep 1000000 & wait; done
"""
