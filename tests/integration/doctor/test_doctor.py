"""The doctor on this machine: injected faults in processes, files and sockets are found."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.config import Config, Container, ContainerKind, Device, Engine
from hpc_dynamo.doctor import analysis, connectivity
from hpc_dynamo.doctor import facts as collect
from hpc_dynamo.doctor.checks import (
    ALL_CHECKS,
    PREFLIGHT_CHECKS,
    run_checks,
)
from hpc_dynamo.doctor.coordinator import (
    CODEC,
    DoctorCoordinator,
    DoctorRendezvous,
    read_token,
    rendezvous_file,
    report_file,
)
from hpc_dynamo.doctor.nixl_endpoint import nixl_endpoint
from hpc_dynamo.doctor.records import (
    DoctorDone,
    DoctorReport,
    Finding,
    FindingLevel,
    LinkResult,
    MeasureLink,
    NodeReady,
    PeersConnected,
)
from hpc_dynamo.errors import KvTransferError
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import ControlClient, ControlServer
from tests.support.doctor import HEALTHY, HERE, HOSTS
from tests.support.runs import HANG_S, hpc_dynamo, latest, write_prompts

LOCAL = ("engine=simulator", "cluster.launcher=local")
# Code of a process whose limits, mounts and variables are the injected fault.
PREPARE = """
import msgspec, subprocess, sys
from hpc_dynamo.config import Config
from hpc_dynamo.doctor.checks import ALL_CHECKS, run_checks
from hpc_dynamo.doctor.facts import driver_gpus, preflight_facts
"""
LOOK = f"""
{PREPARE}
facts = preflight_facts(Config(), 2, "127.0.0.1", "n1")
facts = msgspec.structs.replace(facts, gpus_listed=driver_gpus())
sys.stdout.write(msgspec.json.encode(run_checks(facts, ALL_CHECKS)).decode())
"""


def findings_after(before: str = "true", **env: str) -> list[Finding]:
    """Return the findings of a process that a shell starts after `before`."""
    argv = ["sh", "-c", f'{before} && exec "$0" -c "$1"', sys.executable, LOOK]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", **env}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=list[Finding])


def faults(found: list[Finding]) -> dict[str, str]:
    return {f.check: f.what for f in found if f.level is FindingLevel.fault}


def run_doctor(folder: Path, *words: str) -> tuple[int, DoctorReport, str]:
    file = folder / "found.json"
    done = hpc_dynamo("doctor", *LOCAL, *words, "--json", str(file), cwd=folder)
    assert file.exists(), done.stdout + done.stderr
    return done.returncode, msgspec.json.decode(file.read_bytes(), type=DoctorReport), done.stdout


def test_doctor_on_healthy_machine_finds_no_fault(tmp_path: Path) -> None:
    code, found, shown = run_doctor(tmp_path, "topology.nodes=3")
    assert code == 0, shown
    assert "healthy" in shown
    assert len(found.links) == 6
    assert all(each.gb_s > 0 and each.latency_us > 0 and each.transport for each in found.links)
    assert not faults(list(found.findings))


def test_checks_of_healthy_process_find_no_fault() -> None:
    assert faults(findings_after()) == {}


def test_low_open_file_limit_is_a_fault() -> None:
    assert "at most 512 open files" in faults(findings_after("ulimit -n 512"))["ulimits"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp"])
def test_full_memory_file_system_is_a_fault(folder: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "small", folder]
    # The imports come first, because the interpreter may be in that folder.
    code = f"{PREPARE}\nsubprocess.run({mount}, check=True)\n{LOOK}"
    argv = ["unshare", "-m", sys.executable, "-c", code]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=HANG_S)
    found = faults(msgspec.json.decode(done.stdout, type=list[Finding]))
    assert found == {folder: f"{folder} has 1 MiB free"}, done.stderr


def test_fewer_visible_gpus_than_planned_is_a_fault() -> None:
    found = faults(findings_after(CUDA_VISIBLE_DEVICES="0"))
    assert found == {"GPUs": "1 GPUs are visible (0) of 2"}


def test_local_run_with_too_few_gpus_names_no_slurm_field(
    tmp_path: Path,
) -> None:
    words = ("topology=aggregated", "topology.aggregated.workers=2", "cluster.gpus_per_node=4")
    done = hpc_dynamo("plan", *LOCAL, "engine.device=cuda", *words, cwd=tmp_path)
    assert "0,1" not in done.stdout  # two workers of one GPU each
    _, found, _ = run_doctor(tmp_path, "engine.device=cuda", *words)
    (fault,) = (f for f in found.findings if f.check == "GPUs")
    assert "of 2" in fault.what
    assert fault.why == "the layout needs 2 GPUs on this node"
    assert "slurm" not in fault.fix


def test_visible_gpu_unknown_to_driver_is_a_fault(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: two'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert faults(findings_after(PATH=path)) == {}
    found = faults(findings_after(PATH=path, CUDA_VISIBLE_DEVICES="0,3"))
    assert found == {"GPUs": "CUDA_VISIBLE_DEVICES names GPU 3, nvidia-smi lists 2"}


def test_address_of_another_node_is_a_fault() -> None:
    found = run_checks(collect.preflight_facts(Config(), 0, "192.0.2.1", "n1"), PREFLIGHT_CHECKS)
    assert "192.0.2.1" in faults(list(found))["ports"]


@pytest.mark.parametrize("check", ["true", "false"])
def test_missing_model_fails_batch_before_engines_start(tmp_path: Path, check: str) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2, max_tokens=2)
    words = ("input=prompts.jsonl", f"model.path={tmp_path}/nothing")
    more = () if check == "true" else ("--no-preflight",)
    done = hpc_dynamo("batch", *LOCAL, *words, *more, cwd=tmp_path)
    if check == "false":
        assert list(latest(tmp_path / "runs/prompts").logs.glob("worker-*.log"))
        return
    assert done.returncode == 3
    assert not (tmp_path / "runs").exists()
    assert f"model.path={tmp_path}/nothing is not there" in done.stderr
    assert "try: a path on a shared disk" in done.stderr


def test_doctor_with_faults_exits_with_1(tmp_path: Path) -> None:
    """MPI is used twice: by the nodes, and by the ranks of a worker on both."""
    shape = ("topology=aggregated", "topology.aggregated.tensor_parallel=2")
    world = ("engine.args.start=mpi", "engine.args.pd-protocol=trtllm", "engine.device=cuda")
    mpi = ("cluster.bootstrap.method=mpi", "cluster.gpus_per_node=1")
    code, found, shown = run_doctor(
        tmp_path, *shape, *world, *mpi, f"model.path={tmp_path}/nothing"
    )
    assert code == 1
    seen = [(f.check, f.what) for f in found.findings if f.level is FindingLevel.fault]
    assert f"{len(seen)} fault(s)" in shown
    seen = [each for each in seen if each[0] != "GPUs"]  # this machine may have some
    assert [check for check, _ in seen] == ["model", "MPI"] * 2 + ["MPI"]
    assert "this process is in no Slurm job" in seen[1][1]
    assert "ranks of worker 0" in seen[-1][1]


def test_interpreter_without_nixl_or_engine_is_a_fault(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = str(bare / "bin/python")
    vllm = Engine(name="vllm", python=python)
    assert collect.engine_error(vllm) == f"no module vllm for {python}"
    missing = collect.engine_error(replace(vllm, python=f"{bare}/none"))
    assert "cannot be run: No such file" in missing
    (tmp_path / "vllm.py").touch()
    assert collect.engine_error(replace(vllm, env={"PYTHONPATH": str(tmp_path)})) == ""
    here = {"PYTHONPATH": str(Path(collect.__file__).parents[2])}
    ours = collect.engine_error(Engine(name="simulator", python=python, env=here))
    assert "no module hpc_dynamo with msgspec" in ours, (
        "the package without its dependencies is not enough"
    )
    code, found, _ = run_doctor(tmp_path, f"engine.python={python}")
    assert code == 1
    assert {"engine", "NIXL"} <= faults(list(found.findings)).keys()


def test_checks_of_engine_in_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interpreter does not exist outside the container."""
    image = tmp_path / "vllm.sif"
    box = Container(kind=ContainerKind.apptainer, image=str(image))
    engine = Engine(name="vllm", python="/in/the/image", container=box)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect.engine_error(engine) == "apptainer is not on PATH"
    (tmp_path / "apptainer").touch(mode=0o755)
    assert collect.engine_error(engine) == f"engine.container.image={image} is not there"
    image.touch()
    assert collect.engine_error(engine) == ""
    engine = replace(engine, container=replace(box, kind=ContainerKind.pyxis))
    assert collect.engine_error(engine).startswith("srun cannot be run: ")
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\necho '--container=path  of an OCI bundle'\n")
    srun.chmod(0o755)
    assert collect.engine_error(engine).startswith("srun has no --container-image")
    srun.write_text("#!/bin/sh\necho '--container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH'\n")
    assert collect.engine_error(engine) == ""
    without = msgspec.structs.replace(HEALTHY, nixl_error="no NIXL", contained=True)
    assert [f.level for f in run_checks(without, ALL_CHECKS)] == [FindingLevel.warning]


def test_read_only_run_folder_is_a_fault(tmp_path: Path) -> None:
    assert collect.run_folder_error(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    error = collect.run_folder_error(Path("/proc/self"))  # not writable, even for root
    assert "/proc/self cannot be written" in error
    broken = msgspec.structs.replace(HEALTHY, run_error=error)
    assert faults(list(run_checks(broken, ALL_CHECKS))) == {"run folder": error}


async def test_closed_port_and_wrong_clock_are_faults() -> None:
    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1):
            writer.write(connectivity.CLOCK.pack(time.time() + 100))
        writer.close()

    closed = socket.create_server((HERE, 0))
    port = closed.getsockname()[1]
    closed.close()
    async with (
        await asyncio.start_server(tell, HERE, 0) as head,
        connectivity.clock_server(HERE) as good,
    ):
        ports = (head.sockets[0].getsockname()[1], port, good)
        peers = [
            NodeReady(node=n, address=HERE, port=p, facts=HEALTHY) for n, p in enumerate(ports)
        ]
        met = await connectivity.connect_to_peers(
            2, [*peers, NodeReady(node=3, address=HERE, port=good, facts=HEALTHY)]
        )
    found = analysis.connection_findings(["head", "shut", "me", "other"], [met])
    assert met.unreachable.keys() == {1}
    assert {f.check for f in found} == {"ports", "clock"}
    assert all(f.host == "me" for f in found)
    assert "a port of shut cannot be reached" in str(found[0])
    assert "its clock is 100.0 s behind" in str(found[1])


async def test_strangers_that_send_without_end_do_not_stop_the_clock() -> None:
    """Any user of the network can connect. Forty connections had stopped a node for 28 s."""
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(connectivity.clock_server(HERE))
        for _ in range(30):
            stranger = stack.enter_context(socket.create_connection((HERE, port)))
            stranger.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    stranger.send(b"x" * 100_000)
        peer = NodeReady(node=1, address=HERE, port=port, facts=HEALTHY)
        assert (await connectivity.connect_to_peers(0, [peer])).unreachable == {}


async def test_link_from_dead_nixl_peer_is_dead() -> None:
    config = Config(engine=Engine(device=Device.cpu))
    async with (
        nixl_endpoint("one", config.engine, HERE) as one,
        nixl_endpoint("two", config.engine, HERE) as two,
    ):
        pull = MeasureLink(peer=1, metadata=two.metadata)
        good = await one.measure(0, pull)
        assert good.error == ""
        assert good.gb_s > 0
        assert "lo" in good.transport
        os.kill(two.pid, 9)
        dead = await one.measure(0, pull)
        gone = await two.measure(1, MeasureLink(peer=0, metadata=one.metadata))
    assert "failed" in dead.error or "could not be added" in dead.error
    assert "the NIXL process of this node ended" in gone.error
    found = analysis.link_findings(["a", "b"], [dead, gone])
    assert [f.host for f in found] == ["a", "b"]
    assert "the link from b is dead" in found[0].what


async def test_delayed_pull_does_not_lower_measured_bandwidth() -> None:
    """The peer is stopped for a while, as on a busy machine."""
    config = Config(engine=Engine(device=Device.cpu))
    async with (
        nixl_endpoint("one", config.engine, HERE) as one,
        nixl_endpoint("two", config.engine, HERE) as two,
    ):
        pull = MeasureLink(peer=1, metadata=two.metadata)
        good = await one.measure(0, pull)
        os.kill(two.pid, signal.SIGSTOP)
        again = asyncio.create_task(one.measure(0, pull))
        await asyncio.sleep(0.5)  # the injected delay of the first pull
        os.kill(two.pid, signal.SIGCONT)
        delayed = await again
    assert delayed.gb_s > good.gb_s / 20  # that pull had a thousandth of it


async def coordinated(
    attempt: Attempt, scripts: dict[tuple[int, int], list[LinkResult]]
) -> DoctorReport:
    """Return the coordinator's report on three nodes with scripted link results.

    The last result of a link is repeated.
    """
    keys = attempt.run.secrets().keys
    server = ControlServer(HERE, keys, CODEC)
    write_json(rendezvous_file(attempt), DoctorRendezvous(endpoint=server.endpoint))
    healthy = msgspec.structs.replace(HEALTHY, run_token=read_token(attempt))

    async def node(number: int) -> None:
        client = ControlClient(server.endpoint, keys, CODEC)
        me = NodeReady(node=number, address=HERE, port=1, facts=healthy, metadata=(b"x",))
        await client.send(me)
        while not isinstance(message := await client.receive(60), DoctorDone):
            if isinstance(message, MeasureLink):
                results = scripts[number, message.peer]
                await client.send(results.pop(0) if len(results) > 1 else results[0])
            else:
                await client.send(PeersConnected(node=number, ahead_s=0.0, unreachable={}))
        client.close()

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(node(number))
        await DoctorCoordinator(attempt, HOSTS, server).run()
    return msgspec.json.decode(report_file(attempt).read_bytes(), type=DoctorReport)


def measured(node: int, peer: int, *rates: float) -> list[LinkResult]:
    """Return results with these rates. A rate of 0 is a dead link."""
    return [LinkResult(node=node, peer=peer, gb_s=r, error="" if r else "no answer") for r in rates]


async def test_doubtful_links_are_measured_again(attempt: Attempt) -> None:
    """New results raise the typical bandwidth, so that more links become doubtful."""
    scripts = {
        (0, 1): measured(0, 1, 0.01, 0.9),
        (0, 2): measured(0, 2, 0.0, 0.9),
        (1, 0): measured(1, 0, 0.2, 0.9),
        (1, 2): measured(1, 2, 0.2, 0.3, 0.0, 0.8),  # the second is for comparison
        (2, 0): measured(2, 0, 0.0, 0.0),
        (2, 1): measured(2, 1, 0.05, 0.04, 0.06, 0.05, 0.04),
    }
    found = await coordinated(attempt, scripts)
    assert [f.what for f in found.findings] == [
        "the link from a is dead: no answer (measured 2 times)",
        "the link from b is slow: 0.060 GB/s, typical are 0.900 (measured 5 times)",
    ]
    assert all(len(left) == 1 for left in scripts.values()), "a result was not requested"
    assert [
        (link.times, link.gb_s) for link in found.links if (link.node, link.peer) == (1, 2)
    ] == [(3, 0.8)]


@pytest.mark.parametrize(
    ("later", "share", "slow"), [(0.9, 0.022, True), (0.05, 0.4, False), (0.0, 0.0, True)]
)
async def test_doubtful_links_are_compared_with_a_typical_one(
    attempt: Attempt, later: float, share: float, *, slow: bool
) -> None:
    """The rate `later` is that of all other links when the load of the nodes has grown."""
    pairs = [(node, peer) for node in range(3) for peer in range(3) if node != peer]
    scripts = {pair: measured(*pair, 0.9, later) for pair in pairs}
    scripts[0, 1] = measured(0, 1, 0.01, 0.02)
    found = await coordinated(attempt, scripts)
    assert bool(found.findings) is slow, found.findings
    (link,) = (each for each in found.links if (each.node, each.peer) == (0, 1))
    assert (link.times, round(link.share, 3)) == (5 if slow else 2, share)


async def test_nixl_with_invalid_transport_does_not_start(tmp_path: Path) -> None:
    config = Config(engine=Engine(device=Device.cpu, env={"UCX_TLS": "nonsense"}))
    with pytest.raises(KvTransferError, match="did not start"):
        async with nixl_endpoint("one", config.engine, HERE):
            pass


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine may have these GPUs")
def test_gpus_named_only_by_local_launcher_are_not_visible(tmp_path: Path) -> None:
    """The local launcher sets CUDA_VISIBLE_DEVICES from cluster.gpus_per_node."""
    words = ("engine.device=cuda", "topology=aggregated", "cluster.gpus_per_node=4")
    code, found, shown = run_doctor(tmp_path, *words)
    assert code == 1
    assert [node.facts.gpus_visible for node in found.nodes] == [()]
    assert "4 of 4" not in shown
