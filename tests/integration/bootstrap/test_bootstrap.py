"""Agents find each other: real processes, by TCP and under a real mpirun."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.bootstrap.address import LOOPBACK, job_address
from hpc_dynamo.bootstrap.tcp import HeadAddress
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import new_keys

# One agent: says its roster, or the error, as JSON. Under mpirun its node is its MPI rank.
AGENT = """
import asyncio, json, logging, os, sys
from pathlib import Path
from hpc_dynamo.bootstrap import exchange_addresses
from hpc_dynamo.config import Bootstrap, BootstrapMethod
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.messages import NodeRecord
from hpc_dynamo.run import Attempt

path, node, count, method, timeout_s = sys.argv[1:]
node = int(node if node != "rank" else os.environ["OMPI_COMM_WORLD_RANK"])
attempt = Attempt(Path(path))
me = NodeRecord(
    node=node, host=f"host-{node}", address="127.0.0.1", pid=os.getpid(),
    log=str(attempt.agent_log(node)),
    control_endpoint=f"tcp://127.0.0.1:{4000 + node}" if not node else "",
)
settings = Bootstrap(
    method=BootstrapMethod(method), timeout_s=float(timeout_s), mpi_timeout_s=float(timeout_s)
)
hosts = [f"host-{n}" for n in range(int(count))]
logging.basicConfig(level=logging.INFO)
try:
    roster = asyncio.run(exchange_addresses(me, hosts, attempt, settings))
except HpcDynamoError as e:
    print(json.dumps({"error": e.message, "hint": e.hint, "type": type(e).__name__}))
else:
    nodes = [[n.node, n.host, n.pid] for n in roster.nodes]
    print(json.dumps({
        "method": roster.method, "seconds": roster.seconds, "control": roster.control,
        "nodes": nodes, "pid": os.getpid(),
    }))
"""

Said = dict[str, Any]


def agent(
    attempt: Attempt,
    node: int | str,
    count: int,
    method: str = "tcp",
    timeout_s: float = 10,
    env: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
    also: Sequence[str] = (),
) -> "subprocess.Popen[str]":
    words = (str(attempt.path), str(node), str(count), method, str(timeout_s))
    return subprocess.Popen(
        [*under, sys.executable, "-c", AGENT, *words, *also],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def said(process: "subprocess.Popen[str]") -> tuple[list[Said], str]:
    """What the agents of a process printed, and what they logged."""
    with process:
        out, err = process.communicate(timeout=40)
    found, rest = list[Said](), out[out.find("{") :].strip() if "{" in out else ""
    while rest:  # mpirun may bring two ranks' lines out as one
        record, end = json.JSONDecoder().raw_decode(rest)
        found.append(record)
        rest = rest[end:].strip()
    assert found, out + err
    return found, err


def one(process: "subprocess.Popen[str]") -> Said:
    (answer,), _ = said(process)
    return answer


def test_all_learn_of_all_by_tcp(attempt: Attempt) -> None:
    count = 5
    agents = [agent(attempt, node, count) for node in reversed(range(count))]  # the head comes last
    rosters = [one(a) for a in agents]
    assert {r["method"] for r in rosters} == {"tcp"}
    assert all(r["nodes"] == rosters[0]["nodes"] for r in rosters)
    assert [n[:2] for n in rosters[0]["nodes"]] == [[n, f"host-{n}"] for n in range(count)]
    assert {n[2] for n in rosters[0]["nodes"]} == {r["pid"] for r in rosters}
    assert {r["control"] for r in rosters} == {"tcp://127.0.0.1:4000"}
    written = attempt.roster()
    assert written is not None
    assert [n.host for n in written.nodes] == [f"host-{n}" for n in range(count)]


def test_the_way_taken_and_its_time_are_logged(attempt: Attempt) -> None:
    _, log = said(agent(attempt, 0, 1))
    assert "bootstrap: 1 agents by tcp in 0." in log


def test_an_agent_that_never_started_is_named(attempt: Attempt) -> None:
    """By the head, and by those that came."""
    head, other = agent(attempt, 0, 3, timeout_s=1.5), agent(attempt, 1, 3, timeout_s=1.5)
    error, others = one(head), one(other)
    missing = f"agent 2 on host-2 never started (log: {attempt.agent_log(2)})"
    assert error["type"] == "BootstrapError"
    assert error["error"].startswith("2 of 3 agents came within ")
    assert error["error"].endswith(f"missing: {missing}")
    assert "cluster.bootstrap.timeout_s" in error["hint"]
    assert missing in others["error"]
    assert attempt.roster() is None


def test_an_agent_without_a_head_says_where_to_look(attempt: Attempt) -> None:
    error = one(agent(attempt, 1, 2, timeout_s=0.5))
    assert "node 0 did not open its rendezvous within " in error["error"]
    assert f"agent 0 on host-0 never started (log: {attempt.agent_log(0)})" in error["error"]


def test_an_agent_with_another_key_is_not_admitted(attempt: Attempt, tmp_path: Path) -> None:
    """Its run folder looks the same, but the secrets are not."""
    other = tmp_path / "another run"
    shutil.copytree(attempt.run.path, other)
    secrets = json.loads((other / "secrets.json").read_bytes())
    secrets["public"], secrets["private"] = new_keys()
    (other / "secrets.json").write_text(json.dumps(secrets))
    stranger_attempt = Attempt(other / "attempts" / "1")
    head = agent(attempt, 0, 2, timeout_s=1.6)
    deadline = time.monotonic() + 10
    while not attempt.rendezvous_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shutil.copy(attempt.rendezvous_file, stranger_attempt.rendezvous_file)
    stranger = one(agent(stranger_attempt, 1, 2, timeout_s=0.5))
    assert "was silent" in stranger["error"]
    assert "1 of 2 agents came" in one(head)["error"]


def test_an_agent_that_cannot_reach_the_head_is_told_apart(attempt: Attempt) -> None:
    """It left its file, so it had started."""
    pipe = agent(attempt, 1, 2, timeout_s=0.2)  # gives up before there is a head
    one(pipe)
    error = one(agent(attempt, 0, 2, timeout_s=0.5))
    assert "agent 1 on host-1 started but cannot reach the head" in error["error"]


def test_a_requeued_job_does_not_meet_its_former_life(attempt: Attempt) -> None:
    with socket.create_server((LOOPBACK, 0)) as dead:  # of the former life
        endpoint = f"tcp://{LOOPBACK}:{dead.getsockname()[1]}"
        write_json(attempt.rendezvous_file, HeadAddress(endpoint=endpoint, restart_count="0"))
        again = {"SLURM_RESTART_COUNT": "1"}
        early = agent(attempt, 1, 2, env=again)
        dead.settimeout(0.5)
        with pytest.raises(TimeoutError):  # it reads the file, and does not come here
            dead.accept()
        head = agent(attempt, 0, 2, env=again)
        assert [len(one(a)["nodes"]) for a in (early, head)] == [2, 2]


needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpirun (apt-get install openmpi-bin) and mpi4py (pip install '.[mpi]')",
)
needs_mpi4py = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py (pip install '.[mpi]')"
)


def mpirun(count: int) -> list[str]:
    return ["mpirun", "-n", str(count), "--allow-run-as-root", "--oversubscribe"]


@needs_mpirun
def test_all_learn_of_all_by_mpi(attempt: Attempt) -> None:
    rosters, log = said(agent(attempt, "rank", 3, "mpi", 30, under=mpirun(3)))
    assert len(rosters) == 3
    assert {r["method"] for r in rosters} == {"mpi"}, log
    assert all(r["nodes"] == rosters[0]["nodes"] for r in rosters)
    assert [n[0] for n in rosters[0]["nodes"]] == [0, 1, 2]
    assert {n[2] for n in rosters[0]["nodes"]} == {r["pid"] for r in rosters}
    assert "bootstrap: 3 agents by mpi in " in log
    assert not attempt.rendezvous_file.exists(), "no file was needed"


@needs_mpirun
def test_nobody_has_to_use_mpi_under_mpi(attempt: Attempt) -> None:
    rosters, _ = said(agent(attempt, "rank", 2, "tcp", 30, under=mpirun(2)))
    assert [r["method"] for r in rosters] == ["tcp", "tcp"]


# A rank's environment with what makes a real MPI fail in it, and what that says.
BROKEN = {
    "library": (
        {"OMPI_COMM_WORLD_RANK": "0", "MPI4PY_LIBMPI": "/no/such/libmpi.so"},
        "cannot load MPI library",
    ),
    "init": (
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_MCA_pml": "no-such-component"},
        "MPI: ",  # and what it could say before it aborted, never the same
    ),
}


@needs_mpi4py
@pytest.mark.parametrize("how", BROKEN)
def test_mpi_that_fails_is_an_error(attempt: Attempt, how: str) -> None:
    env, said_by_mpi = BROKEN[how]
    error = one(agent(attempt, 0, 2, "mpi", env=env))
    assert error["type"] == "BootstrapError"
    assert error["error"].startswith("MPI: ")
    assert said_by_mpi in error["error"], "what MPI said is not told"
    assert "cluster.bootstrap.method=tcp" in error["hint"]
    assert f"agent 1 on host-1 never started (log: {attempt.agent_log(1)})" in error["error"]


@needs_mpirun
def test_a_rank_that_does_not_come_to_mpi_is_named(attempt: Attempt) -> None:
    """Two agents in a world of three."""
    idle = [":", "-n", "1", sys.executable, "-c", "import time; time.sleep(30)"]
    process = agent(attempt, "rank", 3, "mpi", 1.0, under=mpirun(2), also=idle)
    errors, log = said(process)
    missing = f"agent 2 on host-2 never started (log: {attempt.agent_log(2)})"
    assert errors
    assert all("MPI: no allgather within 1 s" in e["error"] for e in errors), log
    assert all(missing in e["error"] for e in errors)


@needs_mpi4py
def test_an_mpi_that_does_not_know_this_srun(attempt: Attempt) -> None:
    """With `srun --mpi=pmi2` and an MPI built without it every rank is alone in its world."""
    agents = [agent(attempt, n, 2, "mpi", 5, env={"PMI_RANK": str(n)}) for n in range(2)]
    assert all("a world of 1 ranks where 2 were" in one(a)["error"] for a in agents)


def test_one_node_stays_on_loopback() -> None:
    assert job_address(None, [socket.gethostname()]) == LOOPBACK
    assert job_address(None, [socket.gethostname()] * 3) == LOOPBACK


def test_the_address_towards_another_node() -> None:
    assert job_address(None, [socket.gethostname(), "127.0.0.2"]) == LOOPBACK


def test_an_interface_by_name() -> None:
    assert job_address("lo", ["elsewhere"]) == LOOPBACK


def test_an_unknown_interface_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.interface='ib7' is not known") as refused:
        job_address("ib7", [])
    assert "lo" in refused.value.hint
