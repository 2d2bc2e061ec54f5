"""The test cluster behaves as a real one, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.namespaces import find, node_pid, processes, run, wait_until
from tests.cluster.slurm import ClusterError, SlurmCluster, Spec, sweep

pytestmark = pytest.mark.cluster

PATIENCE_S = 60  # for a busy machine; an idle one takes a second or two

ALLGATHER = """
import json
from mpi4py import MPI
ranks = MPI.COMM_WORLD.allgather((MPI.COMM_WORLD.rank, MPI.Get_processor_name()))
if MPI.COMM_WORLD.rank == 0:
    print(json.dumps(ranks))
"""


def submit(cluster: SlurmCluster, script: str, out: Path, *options: str) -> str:
    """Submits a batch script and returns the job's id."""
    path = out.with_suffix(".sh")
    path.write_text(f"#!/bin/sh\n{script}\n")
    argv = ("sbatch", "--parsable", "--nodes=3", f"--output={out}", "--open-mode=append")
    return cluster.slurm(*argv, *options, path).strip()


def state(cluster: SlurmCluster, job: str) -> str:
    argv = ("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
    return cluster.slurm(*argv).strip()


def says(out: Path, text: str) -> Callable[[], bool]:
    return lambda: out.exists() and text in out.read_text()


def reachable(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except TimeoutError:
        return False
    return True


def test_nodes_are_hosts_of_their_own(cluster: SlurmCluster) -> None:
    show = "touch /tmp/$(hostname) /dev/shm/$(hostname); sleep 0.5; hostname; "
    show += "ls -d /tmp/* /dev/shm/*; ip -4 -o address show dev eth0; ls /sys/class/net"
    for node in cluster.nodes:
        seen = cluster.slurm("srun", f"--nodelist={node}", "--nodes=1", "sh", "-c", show)
        assert seen.split()[0] == node
        left = {word for word in seen.split() if word.startswith(("/tmp/", "/dev/shm/"))}
        assert {f"/tmp/{node}", f"/dev/shm/{node}"} <= left
        others = {f"{folder}/{n}" for n in cluster.nodes for folder in ("/tmp", "/dev/shm")}
        assert left & others == {f"/tmp/{node}", f"/dev/shm/{node}"}, "another node's files"
        assert f"{cluster.address(node)}/24" in seen
        assert seen.split()[-2:] == ["eth0", "lo"]
        assert socket.gethostbyname(node) == cluster.address(node)
    assert len({cluster.address(node) for node in cluster.nodes}) == 3


def test_jobs_start_without_waiting_for_a_scheduling_interval(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    """The best of three: the machine may be busy."""

    def start_s(out: Path) -> float:
        submitted = time.monotonic()
        submit(cluster, "echo started", out)
        wait_until(says(out, "started"), PATIENCE_S, "start of the job")
        return time.monotonic() - submitted

    assert min(start_s(shared_dir / f"out{i}") for i in range(3)) < 15


def test_mpi_spans_the_nodes(cluster: SlurmCluster, shared_dir: Path) -> None:
    pytest.importorskip("mpi4py")
    out, program = shared_dir / "out", shared_dir / "allgather.py"
    program.write_text(ALLGATHER)
    job = submit(cluster, f"srun --mpi=pmix {sys.executable} {program}", out)
    wait_until(lambda: state(cluster, job) == "COMPLETED", PATIENCE_S, "end of the MPI job")
    assert json.loads(out.read_text()) == [list(pair) for pair in enumerate(cluster.nodes)]


def test_steps_get_the_gpus_they_ask_for(cluster: SlurmCluster) -> None:
    show = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert cluster.slurm("srun", "--gres=gpu:2", *show).strip() == "0,1"
    assert cluster.slurm("srun", "--gres=gpu:1", *show).strip() == "0"


def test_cut_node_is_silent_until_restored(cluster: SlurmCluster) -> None:
    first, second, _ = cluster.nodes
    address, port = cluster.address(second), 6818
    probe = ("timeout", "3", "bash", "-c", f"echo >/dev/tcp/{second}/{port}")
    neighbour = cluster.on(first, *probe)
    assert reachable(address, port)
    assert subprocess.run(neighbour, check=False).returncode == 0
    cluster.cut(second)
    try:
        assert not reachable(address, port)
        assert subprocess.run(neighbour, check=False).returncode == 124
    finally:
        cluster.restore(second)
    wait_until(lambda: reachable(address, port), PATIENCE_S, "return of the node")


def test_cancelled_job_may_end_gracefully(cluster: SlurmCluster, shared_dir: Path) -> None:
    """Tasks get SIGTERM and time; what they have left behind dies with the step."""
    out, last_words = shared_dir / "out", shared_dir / "last_words"  # srun may die before its tasks
    trap = f"trap 'sleep 1; echo bye >>{last_words}; exit 0' TERM"
    body = f"{trap}; setsid sleep 4242 & echo ready; sleep 99 & wait"
    job = submit(cluster, f'srun sh -c "{body}"', out)
    wait_until(
        lambda: out.exists() and out.read_text().count("ready") == 3, PATIENCE_S, "start of tasks"
    )
    assert all(orphans(cluster, node, "4242") for node in cluster.nodes)
    cluster.slurm("scancel", job)
    wait_until(lambda: state(cluster, job) == "CANCELLED", PATIENCE_S, "end of the job")
    assert last_words.read_text().count("bye") == 3
    assert not [pid for node in cluster.nodes for pid in orphans(cluster, node, "4242")]


def orphans(cluster: SlurmCluster, node: str, argument: str) -> list[int]:
    home = _network(node_pid(cluster.spec, node) or 0)
    return [pid for pid in find(lambda argv: argument in argv) if _network(pid) == home]


def test_job_can_be_requeued(cluster: SlurmCluster, shared_dir: Path) -> None:
    out = shared_dir / "out"
    script = 'echo restart=${SLURM_RESTART_COUNT:-0}; [ "$SLURM_RESTART_COUNT" ] || sleep 60'
    job = submit(cluster, script, out)
    wait_until(says(out, "restart=0"), PATIENCE_S, "first start")
    cluster.slurm("scontrol", "requeue", job)
    # Slurm holds a requeued job until its old credentials have expired: 20 s on this cluster.
    wait_until(says(out, "restart=1"), PATIENCE_S, "second start")


def test_crashed_node_boots_again(cluster: SlurmCluster) -> None:
    node = cluster.nodes[2]
    cluster.crash(node)
    with pytest.raises(ClusterError, match="is not running; nodes: "):
        cluster.on(node, "true")
    cluster.boot(node)
    wait_until(lambda: cluster.states() == {"idle"}, PATIENCE_S, "all nodes idle")
    argv = ("srun", f"--nodelist={node}", "--nodes=1", "hostname")
    assert cluster.slurm(*argv).strip() == node


def test_slurmd_can_be_killed_under_a_running_job(cluster: SlurmCluster, shared_dir: Path) -> None:
    out, node = shared_dir / "out", cluster.nodes[1]
    submit(cluster, "srun sh -c 'echo ready; sleep 2; echo done'", out)
    wait_until(
        lambda: out.exists() and out.read_text().count("ready") == 3, PATIENCE_S, "start of tasks"
    )
    cluster.kill(node)
    try:
        wait_until(lambda: out.read_text().count("done") == 3, PATIENCE_S, "end of tasks")
    finally:
        cluster.revive(node)
    wait_until(lambda: cluster.states() == {"idle"}, PATIENCE_S, "all nodes idle")


def traces(spec: Spec) -> str:
    """All that names a cluster on this machine."""
    links = run("ip", "-brief", "link")
    programs = "\n".join(" ".join(argv) for argv in processes().values())
    groups = "\n".join(map(str, Path("/sys/fs/cgroup").glob("freezer/slurm_*")))
    places = "\n".join(map(str, spec.state.parent.iterdir()))
    text = "\n".join((links, programs, groups, places, Path("/etc/hosts").read_text()))
    return "\n".join(line for line in text.splitlines() if spec.name in line)


def machine_state() -> tuple[str, str]:
    return run("ip", "netns"), Path("/proc/mounts").read_text()


def _network(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""  # gone meanwhile, or the machine's own first process


def test_down_leaves_nothing(cluster: SlurmCluster) -> None:
    spec, before = Spec(f"t{os.getpid()}x", nodes=2, gpus=1), machine_state()
    with SlurmCluster(spec) as second:
        assert {*second.addresses.values()}.isdisjoint(cluster.addresses.values())
        second.slurm("sbatch", "--nodes=2", "--output=/dev/null", "--wrap=srun sleep 4343")
        wait_until(
            lambda: len(find(lambda argv: argv[1:] == ["4343"])) == 2, PATIENCE_S, "start of tasks"
        )
        networks = {_network(node_pid(spec, node) or 0) for node in second.nodes}
        inside = {pid: argv for pid, argv in processes().items() if _network(pid) in networks}
        assert len(inside) > len(second.nodes)
        assert second.spec.bridge in traces(spec)
    assert traces(spec) == ""
    assert machine_state() == before
    # A network of another cluster may have the number of one that was removed.
    assert not [pid for pid, argv in processes().items() if inside.get(pid) == argv]
    assert cluster.states() == {"idle"}


@pytest.mark.parametrize("stage", ["munge.socket", "slurmctld.pid", "{name}2/slurmd.pid"])
def test_sweep_clears_after_a_killed_runner(stage: str) -> None:
    spec, before = Spec(f"t{os.getpid()}y"), machine_state()
    program = f"from tests.cluster.slurm import *; SlurmCluster(Spec({spec.name!r})).__enter__()"
    reached = spec.state / stage.format(name=spec.name)
    with subprocess.Popen((sys.executable, "-c", program), cwd=Path(__file__).parents[2]) as runner:
        wait_until(reached.exists, PATIENCE_S, f"start of {stage}")
        runner.send_signal(signal.SIGKILL)
    assert spec.bridge in traces(spec)
    sweep()
    assert traces(spec) == ""
    assert machine_state() == before
