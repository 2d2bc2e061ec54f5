"""Wire records of the doctor's tasks, and its report."""

from enum import StrEnum

import msgspec

from hpc_dynamo.model_files import Problem


class FindingLevel(StrEnum):
    """A fault breaks a run or makes it very slow. A warning may do so."""

    fault = "fault"
    warning = "warning"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A problem on one host: what is wrong, why it matters and how to fix it."""

    check: str
    level: FindingLevel
    what: str
    why: str
    fix: str
    host: str = ""

    def __str__(self) -> str:
        return f"{self.host}: {self.what}; {self.why}\n  try: {self.fix}"


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one node. Sizes are in bytes, rates in 1e9 bytes/s. A limit of -1 is no limit."""

    host: str
    shm_free: int
    tmp_free: int
    nofile: int
    memlock: int
    port_error: str = ""  # why no port of the job's address can be bound
    model_problems: tuple[Problem, ...] = ()
    gpus_wanted: int = 0
    local: bool = False  # started by cluster.launcher=local
    gpus_visible: tuple[str, ...] = ()
    # Only `hpc-dynamo doctor` collects the following.
    gpus_listed: tuple[str, ...] | None = None  # by nvidia-smi; None: not installed
    rdma_devices: tuple[str, ...] = ()
    model_gb_s: float | None = None
    run_error: str = ""  # why the run folder is not writable
    run_token: str = ""  # content of the coordinator's file, as seen here
    engine_error: str = ""
    nixl_error: str = ""
    contained: bool = False  # engine in a container; NIXL was tried outside of it
    mpi: str = ""  # version of the library
    mpi_error: str = ""


class NodeReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Node to coordinator, first: the facts are collected, and peers can connect."""

    node: int
    address: str
    port: int
    facts: NodeFacts
    metadata: tuple[bytes, ...] = ()  # NIXL agents; empty: no NIXL
    memory: str = ""  # memory of the NIXL agents: host or GPU


class ConnectPeers(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Coordinator to each node: connect to the ports of the other nodes."""

    nodes: tuple[NodeReady, ...]


class PeersConnected(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Node to coordinator: result of ConnectPeers."""

    node: int
    ahead_s: float  # this clock minus node 0's
    unreachable: dict[int, str]  # errors by node


class MeasureLink(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Coordinator to a node: measure the link from a peer."""

    peer: int
    metadata: tuple[bytes, ...]


class LinkResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Node to coordinator: `node` pulled KV blocks from `peer`. The best pull counts."""

    node: int
    peer: int
    gb_s: float = 0.0
    latency_us: float = 0.0
    transport: str = ""  # with the interface, such as rc_mlx5/mlx5_0:1
    error: str = ""
    times: int = 1  # number of measurements
    # Best bandwidth relative to that of a typical link measured right after; 0: not compared.
    share: float = 0.0


class DoctorDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Coordinator to each node, last: exit."""


DoctorMessage = NodeReady | ConnectPeers | PeersConnected | MeasureLink | LinkResult | DoctorDone


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """All results, as written by `--json FILE`."""

    hosts: tuple[str, ...]
    nodes: tuple[NodeReady, ...]  # the nodes that reported
    links: tuple[LinkResult, ...]
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def healthy(self) -> bool:
        return all(finding.level is not FindingLevel.fault for finding in self.findings)
