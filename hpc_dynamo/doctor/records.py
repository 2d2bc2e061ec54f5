"""What the doctor sees and says, between its tasks and in its report."""

from enum import StrEnum

import msgspec

from hpc_dynamo.model_files import Problem


class FindingLevel(StrEnum):
    """A fault breaks a run or slows it badly; a warning may do so."""

    fault = "fault"
    warning = "warning"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, where, why it matters and what mends it."""

    check: str
    level: FindingLevel
    what: str
    why: str
    fix: str
    host: str = ""

    def __str__(self) -> str:
        return f"{self.host}: {self.what}; {self.why}\n  try: {self.fix}"


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What there is on one node. Sizes in bytes, limits of -1 are none, rates in 1e9 bytes/s."""

    host: str
    shm_free: int
    tmp_free: int
    nofile: int
    memlock: int
    port_error: str = ""  # why no port of the job's address can be had
    model_problems: tuple[Problem, ...] = ()
    gpus_wanted: int = 0
    local: bool = False  # started by cluster.launcher=local, not by Slurm
    gpus_visible: tuple[str, ...] = ()
    # From here on only `hpc-dynamo doctor` looks.
    gpus_listed: tuple[str, ...] | None = None  # by nvidia-smi; None: it is not there
    rdma_devices: tuple[str, ...] = ()
    model_gb_s: float | None = None
    run_error: str = ""  # why the run folder cannot be written
    run_token: str = ""  # what the head wrote there, as seen here
    engine_error: str = ""
    nixl_error: str = ""
    contained: bool = False  # the engine is in an image, so NIXL was tried with our interpreter
    mpi: str = ""  # the library's version
    mpi_error: str = ""


class NodeReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A node has looked at itself and can be met."""

    node: int
    address: str
    port: int
    facts: NodeFacts
    metadata: tuple[bytes, ...] = ()  # of its NIXL agents; empty where there are none
    memory: str = ""  # what they move: host or GPU


class ConnectPeers(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Try to reach these."""

    nodes: tuple[NodeReady, ...]


class PeersConnected(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What came of it. `unreachable`: by node, why."""

    node: int
    ahead_s: float
    unreachable: dict[int, str]


class MeasureLink(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure the link from a peer."""

    peer: int
    metadata: tuple[bytes, ...]


class LinkResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """KV blocks of `peer` pulled by `node`: the best of a few pulls, and of some times."""

    node: int
    peer: int
    gb_s: float = 0.0
    latency_us: float = 0.0
    transport: str = ""  # and interface, such as rc_mlx5/mlx5_0:1
    error: str = ""
    times: int = 1  # that it was measured


class DoctorDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nothing more is asked."""


DoctorMessage = NodeReady | ConnectPeers | PeersConnected | MeasureLink | LinkResult | DoctorDone


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    hosts: tuple[str, ...]
    nodes: tuple[NodeReady, ...]  # those that came
    links: tuple[LinkResult, ...]
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def healthy(self) -> bool:
        return all(finding.level is not FindingLevel.fault for finding in self.findings)
