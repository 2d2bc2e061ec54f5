"""Networks and processes of the nodes of a Slurm job, while clients use its endpoint."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.integration.serving.served import Served
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import hpc_dynamo, latest, until
from tests.support.traffic import Traffic

pytestmark = [pytest.mark.cluster, pytest.mark.slow_fault]

WORDS = (
    *("serve", "name=s", "engine=simulator", "cluster.launcher=slurm", "--detach"),
    *("topology=aggregated", "topology.nodes=3", "topology.aggregated.workers=3"),
    *("cluster.heartbeat_timeout_s=8", "engine.hang_timeout_s=6", "engine.max_restarts=100"),
    "cluster.reconnect_timeout_s=120",
)
SHORT_S, LONG_S = 4.0, 20.0  # a cut shorter and longer than the timeouts
REJOINS = "no requests after 8 s; it rejoins with its engines"
Inject = Callable[[SlurmCluster, str, Served], None]


def cut(seconds: float, cluster: SlurmCluster, node: str, _served: Served) -> None:
    cluster.cut(node)
    time.sleep(seconds)
    cluster.restore(node)


def filtered(rule: str, cluster: SlurmCluster, node: str, _served: Served) -> None:
    """Apply a rule to the packets of a node for LONG_S."""
    chain, _, verdict = rule.partition(" ")
    spec = f"{{ type filter hook {chain} priority 0; }}"
    for words in (
        ("add", "table", "inet", "fault"),
        ("add", "chain", "inet", "fault", "c", spec),
        ("add", "rule", "inet", "fault", "c", *verdict.split()),
    ):
        subprocess.run(cluster.on(node, "nft", *words), check=True)
    time.sleep(LONG_S)
    subprocess.run(cluster.on(node, "nft", "delete", "table", "inet", "fault"), check=True)


def suspend(cluster: SlurmCluster, _node: str, served: Served) -> None:
    job = served.attempt.job()
    assert job
    cluster.slurm("scontrol", "suspend", job.job_id)
    time.sleep(LONG_S)
    cluster.slurm("scontrol", "resume", job.job_id)


def kill_engines(cluster: SlurmCluster, node: str, _served: Served) -> None:
    pattern = "^[^ ]*python[^ ]* -m hpc_dynamo.simulator"
    subprocess.run(cluster.on(node, "pkill", "-KILL", "-f", pattern), check=True)


@dataclass(frozen=True)
class Case:
    fault: str
    promise: str
    inject: Inject
    needs_nft: bool = False


WAIT, KEPT = "requests wait", "nothing is lost"
CASES = (
    Case("link of a node cut for 4 s (Slurm)", WAIT, partial(cut, SHORT_S)),
    Case("link of a node cut for 20 s (Slurm)", REJOINS, partial(cut, LONG_S)),
    Case("10 % of a node's packets lost for 20 s (Slurm)", KEPT,
         partial(filtered, "input numgen random mod 10 == 0 drop"), needs_nft=True),
    Case("packets from a node lost for 20 s (Slurm)", REJOINS,
         partial(filtered, "output oifname eth0 drop"), needs_nft=True),
    Case("packets to a node lost for 20 s (Slurm)", REJOINS,
         partial(filtered, "input iifname eth0 drop"), needs_nft=True),
    Case("`scontrol suspend` of the job for 20 s (Slurm)", KEPT, suspend),
    Case("SIGKILL of all engines of a node (Slurm)", KEPT, kill_engines),
)  # fmt: skip


@pytest.fixture(scope="module")
def served(cluster: SlurmCluster) -> Iterator[Served]:
    folder = Path(mkdtemp(dir=cluster.shared))
    done = hpc_dynamo(*WORDS, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(folder / "runs/s")
    try:
        until("an endpoint", lambda: attempt.endpoint() or attempt.outcome(), 100)
        served = Served(attempt)
        until("all workers", lambda: complete(served), 60)
        yield served
    finally:
        hpc_dynamo("stop", "name=s", cwd=folder, env=cluster.env)


def complete(served: Served) -> bool:
    return len(served.workers().get("aggregated", [])) == 3


@pytest.mark.parametrize("case", [pytest.param(c, id=c.fault.replace(" ", "_")) for c in CASES])
def test_node_under_load(
    cluster: SlurmCluster, served: Served, case: Case, fault: FaultRecorder
) -> None:
    if case.needs_nft and shutil.which("nft") is None:
        pytest.skip("needs nft")
    until("all workers", lambda: complete(served))
    row = fault(case.fault, case.promise)
    with Traffic(served, fault.chance, 5) as traffic:
        traffic.wait_for(fault.chance.randrange(2, 8))
        case.inject(cluster, fault.chance.choice(cluster.nodes[1:]), served)
        now = time.monotonic()
        row.injected()
        until("recovery", lambda: traffic.answered_since(now) and complete(served))
        row.recovered()
    row.requests(traffic.sent, traffic.lost)
    assert not traffic.lost, traffic.errors()
    assert served.attempt.outcome() is None


def test_link_cut_for_good(cluster: SlurmCluster, served: Served, fault: FaultRecorder) -> None:
    """Runs last: the node does not come back."""
    until("all workers", lambda: complete(served))
    node = fault.chance.choice(cluster.nodes[1:])
    row = fault("link of a node cut for good (Slurm)", "its requests move; the rest continues")
    try:
        with Traffic(served, fault.chance, 5) as traffic:
            traffic.wait_for(3)
            row.injected()
            cluster.cut(node)
            until("it is noticed", lambda: len(served.workers().get("aggregated", [])) == 2)
            pending = traffic.sent
            until("those that ran", lambda: len(traffic.results) >= pending)
            row.recovered()
    finally:
        cluster.restore(node)
    row.requests(traffic.sent, traffic.lost)
    assert not traffic.lost, traffic.errors()
