"""The doctor on three hosts of a real Slurm cluster, healthy and with injected faults."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.doctor.records import DoctorReport, Finding, FindingLevel
from tests.cluster.namespaces import run
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import hpc_dynamo, write_prompts

pytestmark = pytest.mark.cluster

THREE = ("engine=simulator", "cluster.launcher=slurm", "topology.nodes=3")
WORLD = (
    *("topology=aggregated", "topology.aggregated.tensor_parallel=6", "cluster.gpus_per_node=2"),
    *("engine.args.start=mpi", "engine.args.pd-protocol=trtllm", "engine.device=cuda"),
)
# 2.5 MB/s, the injected slow link: on a busy machine the others have 50 MB/s or more.
RATE = "20mbit"
MAKE_MODEL = ("sh", "-c", "mkdir /tmp/model && touch /tmp/model/tokenizer_config.json")


def run_doctor(cluster: SlurmCluster, folder: Path, *words: str) -> tuple[int, DoctorReport, str]:
    file = folder / "found.json"
    argv = ("doctor", *THREE, *words, "--json", str(file))
    done = hpc_dynamo(*argv, cwd=folder, env=cluster.env)
    assert file.exists(), done.stdout + done.stderr
    return done.returncode, msgspec.json.decode(file.read_bytes(), type=DoctorReport), done.stdout


def faults(report: DoctorReport) -> list[Finding]:
    return [f for f in report.findings if f.level is FindingLevel.fault]


def test_healthy_cluster_has_no_fault(cluster: SlurmCluster, shared_dir: Path) -> None:
    """One worker runs as six MPI ranks on all nodes."""
    code, found, shown = run_doctor(cluster, shared_dir, *WORLD)
    assert (code, faults(found)) == (0, []), shown
    assert found.hosts == cluster.nodes
    assert {(each.node, each.peer) for each in found.links} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }
    assert all(each.transport == "tcp/eth0" for each in found.links)
    assert [node.address for node in found.nodes] == [cluster.address(n) for n in cluster.nodes]
    assert all("Open MPI" in node.facts.mpi for node in found.nodes)
    assert "healthy" in shown


def test_mpi_ranks_that_do_not_connect_are_a_fault(cluster: SlurmCluster, shared_dir: Path) -> None:
    code, found, shown = run_doctor(cluster, shared_dir, *WORLD, "cluster.slurm.mpi=none")
    assert (code, [f.check for f in faults(found)]) == (1, ["MPI"]), shown
    assert "the 6 ranks of worker 0 did not meet" in faults(found)[0].what


@contextmanager
def slow(cluster: SlurmCluster, node: str) -> Iterator[None]:
    """Limit the rate of all packets to a node."""
    device = cluster.spec.link(node)
    queue = ("tc", "qdisc", "add", "dev", device, "root")
    run(*queue, "tbf", "rate", RATE, "burst", "64kb", "latency", "200ms")
    try:
        yield
    finally:
        run("tc", "qdisc", "del", "dev", device, "root")


@contextmanager
def closed(cluster: SlurmCluster, node: str, other: str) -> Iterator[None]:
    """Drop all packets between `node` and `other`."""
    route = ("ip", "route")
    address = cluster.address(other)
    run(*cluster.on(node, *route, "add", "unreachable", f"{address}/32"))
    try:
        yield
    finally:
        run(*cluster.on(node, *route, "del", "unreachable", f"{address}/32"))


def test_slow_link_full_memory_and_missing_model_are_faults(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    second, third = cluster.nodes[1], cluster.nodes[2]
    for node in cluster.nodes[:2]:
        run(*cluster.on(node, *MAKE_MODEL))  # a different folder on each node
    mount = ("mount", "-t", "tmpfs", "-o", "size=1m", "small", "/dev/shm")
    run(*cluster.on(second, *mount))
    try:
        with slow(cluster, third):
            code, found, shown = run_doctor(cluster, shared_dir, "model.path=/tmp/model")
    finally:
        run(*cluster.on(second, "umount", "/dev/shm"))
        for node in cluster.nodes[:2]:
            run(*cluster.on(node, "rm", "-r", "/tmp/model"))
    assert code == 1
    seen = {(f.check, f.host) for f in faults(found)}
    assert seen == {("NIXL", third), ("/dev/shm", second), ("model", third)}, shown
    links = [f.what for f in faults(found) if f.check == "NIXL"]
    assert len(links) == 2
    assert all("over tcp/eth0 is slow" in what for what in links)


def test_nodes_without_route_have_dead_links(cluster: SlurmCluster, shared_dir: Path) -> None:
    second, third = cluster.nodes[1], cluster.nodes[2]
    with closed(cluster, second, third), closed(cluster, third, second):
        code, found, shown = run_doctor(cluster, shared_dir)
    assert code == 1
    seen = {(f.check, f.host) for f in faults(found)}
    assert seen == {(check, n) for check in ("ports", "NIXL") for n in (second, third)}, shown
    assert any(f"the link from {third} is dead" in f.what for f in faults(found))


def test_preflight_fault_names_node(cluster: SlurmCluster, shared_dir: Path) -> None:
    write_prompts(shared_dir / "prompts.jsonl", 2)
    first, _, third = cluster.nodes
    for node in cluster.nodes[:2]:
        run(*cluster.on(node, *MAKE_MODEL))
    words = ("input=prompts.jsonl", "model.path=/tmp/model", "topology.decode.workers=2")
    try:
        done = hpc_dynamo("batch", *THREE, *words, cwd=shared_dir, env=cluster.env)
    finally:
        for node in cluster.nodes[:2]:
            run(*cluster.on(node, "rm", "-r", "/tmp/model"))
    assert done.returncode == 1
    assert f"{third}: model.path=/tmp/model is not there" in done.stderr
    assert f"{first}: " not in done.stderr
