"""Exchange of addresses between real processes, over TCP and under a real mpirun."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.bootstrap.address import LOOPBACK, job_address
from hpc_dynamo.bootstrap.tcp import HeadAddress
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.wire import new_keys
from tests.support.runs import HANG_S, until

# An agent that prints its roster, or the error, as JSON. Its last argument is the command of a
# launcher of MPI ranks, such as mpirun, for node 0.
AGENT = """
import asyncio, json, logging, os, sys
from pathlib import Path
from hpc_dynamo.bootstrap import MpiStep, exchange_addresses, rank_command
from hpc_dynamo.config import Bootstrap
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.messages import NodeRecord
from hpc_dynamo.run import Attempt

path, node, count, timeout_s, *launcher = sys.argv[1:]
node, attempt = int(node), Attempt(Path(path))
me = NodeRecord(
    node=node, host=f"host-{node}", address="127.0.0.1", pid=os.getpid(),
    log=str(attempt.agent_log(node)),
    control_endpoint=f"tcp://127.0.0.1:{4000 + node}" if not node else "",
)
settings = Bootstrap(timeout_s=float(timeout_s), mpi_timeout_s=float(timeout_s))
hosts = [f"host-{n}" for n in range(int(count))]
if "TOGETHER" in os.environ:
    print("ready to start", file=sys.stderr, flush=True)
    sys.stdin.readline()
logging.basicConfig(level=logging.INFO)
step = MpiStep((*launcher, *rank_command(attempt, hosts)), os.environ) if launcher else None
try:
    spare_nodes = int(os.environ.get("SPARE_NODES", "0"))
    roster = asyncio.run(exchange_addresses(me, hosts, attempt, settings, step, spare_nodes))
except HpcDynamoError as e:
    print(json.dumps({"error": e.message, "hint": e.hint, "type": type(e).__name__}))
else:
    nodes = [[n.node, n.host, n.pid] for n in roster.nodes]
    print(json.dumps({
        "method": roster.method, "control": roster.control_endpoint,
        "nodes": nodes, "pid": os.getpid(),
    }))
"""

Result = dict[str, Any]
TOGETHER = {"TOGETHER": "1"}  # see `let_start`


def agent(
    attempt: Attempt,
    node: int,
    count: int,
    timeout_s: float = 60,
    env: Mapping[str, str] | None = None,
    launcher: Sequence[str] = (),
) -> "subprocess.Popen[str]":
    words = (str(attempt.path), str(node), str(count), str(timeout_s))
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, *words, *launcher],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def let_start(*agents: "subprocess.Popen[str]") -> None:
    """Let agents with TOGETHER in their environment start, once all have made their imports, which
    take long on a busy machine."""
    for each in agents:
        assert each.stderr
        assert each.stderr.readline() == "ready to start\n"
    for each in agents:
        assert each.stdin
        each.stdin.write("\n")
        each.stdin.flush()


def results(process: "subprocess.Popen[str]") -> tuple[list[Result], str]:
    """Return what the agents of a process printed, and their log."""
    with process:
        out, err = process.communicate(timeout=HANG_S)
    found, rest = list[Result](), out[out.find("{") :].strip() if "{" in out else ""
    while rest:  # mpirun may join the lines of two ranks
        record, end = json.JSONDecoder().raw_decode(rest)
        found.append(record)
        rest = rest[end:].strip()
    assert found, out + err
    return found, err


def one(process: "subprocess.Popen[str]") -> Result:
    (answer,), _ = results(process)
    return answer


def test_tcp_exchange_gives_every_agent_the_roster(attempt: Attempt) -> None:
    count = 5
    agents = [
        agent(attempt, node, count) for node in reversed(range(count))
    ]  # the head starts last
    rosters = [one(a) for a in agents]
    assert {r["method"] for r in rosters} == {"tcp"}
    assert all(r["nodes"] == rosters[0]["nodes"] for r in rosters)
    assert [n[:2] for n in rosters[0]["nodes"]] == [[n, f"host-{n}"] for n in range(count)]
    assert {n[2] for n in rosters[0]["nodes"]} == {r["pid"] for r in rosters}
    assert {r["control"] for r in rosters} == {"tcp://127.0.0.1:4000"}
    written = attempt.roster()
    assert written is not None
    assert [n.host for n in written.nodes] == [f"host-{n}" for n in range(count)]


def test_exchange_logs_method_and_duration(attempt: Attempt) -> None:
    _, log = results(agent(attempt, 0, 1))
    assert re.search(r"bootstrap: 1 agents by tcp in \d+\.\d", log)


def test_error_names_agent_that_never_started(attempt: Attempt) -> None:
    head, other = (agent(attempt, node, 3, timeout_s=3, env=TOGETHER) for node in (0, 1))
    let_start(head, other)
    error, others = one(head), one(other)
    missing = f"agent 2 on host-2 never started (log: {attempt.agent_log(2)})"
    assert error["type"] == "BootstrapError"
    assert error["error"].startswith("2 of 3 agents came within ")
    assert error["error"].endswith(f"missing: {missing}")
    assert "cluster.bootstrap.timeout_s" in error["hint"]
    assert missing in others["error"]
    assert attempt.roster() is None


def test_error_without_head_names_its_log(attempt: Attempt) -> None:
    error = one(agent(attempt, 1, 2, timeout_s=0.5))
    assert "node 0 did not write its address within " in error["error"]
    assert f"agent 0 on host-0 never started (log: {attempt.agent_log(0)})" in error["error"]


def test_agent_with_another_key_is_rejected(attempt: Attempt, tmp_path: Path) -> None:
    """Its run folder is a copy with other secrets."""
    other = tmp_path / "another run"
    shutil.copytree(attempt.run.path, other)
    secrets = json.loads((other / "secrets.json").read_bytes())
    secrets["public"], secrets["private"] = new_keys()
    (other / "secrets.json").write_text(json.dumps(secrets))
    stranger_attempt = Attempt(other / "attempts" / "1")
    head = agent(attempt, 0, 2, timeout_s=4)
    until("the address of the head", attempt.rendezvous_file.exists, poll_s=0.01)
    shutil.copy(attempt.rendezvous_file, stranger_attempt.rendezvous_file)
    stranger = one(agent(stranger_attempt, 1, 2, timeout_s=0.5))
    assert "no message from" in stranger["error"]
    assert "1 of 2 agents came" in one(head)["error"]


def test_error_distinguishes_agent_that_cannot_reach_head(attempt: Attempt) -> None:
    """Its node file shows that it has started."""
    pipe = agent(attempt, 1, 2, timeout_s=0.2)  # gives up before there is a head
    one(pipe)
    error = one(agent(attempt, 0, 2, timeout_s=0.5))
    assert "agent 1 on host-1 started but cannot reach the head" in error["error"]


def test_requeued_job_ignores_address_of_earlier_execution(attempt: Attempt) -> None:
    with socket.create_server((LOOPBACK, 0)) as dead:  # port of the earlier execution
        endpoint = f"tcp://{LOOPBACK}:{dead.getsockname()[1]}"
        write_json(attempt.rendezvous_file, HeadAddress(endpoint=endpoint, restart_count=0))
        again = {"SLURM_RESTART_COUNT": "1"}
        early = agent(attempt, 1, 2, env=again)
        dead.settimeout(0.5)
        with pytest.raises(TimeoutError):  # it reads the file but does not connect
            dead.accept()
        head = agent(attempt, 0, 2, env=again)
        assert [len(one(a)["nodes"]) for a in (early, head)] == [2, 2]


def test_exchange_can_be_repeated(attempt: Attempt) -> None:
    """An agent that starts before the head does not use the address of the exchange before."""
    for _ in range(2):
        early = agent(attempt, 1, 2)
        head = agent(attempt, 0, 2)
        assert [len(one(a)["nodes"]) for a in (early, head)] == [2, 2]
        assert not attempt.rendezvous_file.exists()
        attempt.roster_file.unlink()


def test_spare_nodes_may_be_missing(attempt: Attempt) -> None:
    spare = {"SPARE_NODES": "1"}
    agents = [agent(attempt, node, 3, timeout_s=3, env=spare | TOGETHER) for node in (0, 2)]
    let_start(*agents)
    assert [[n[0] for n in one(a)["nodes"]] for a in agents] == [[0, 2], [0, 2]]
    late = one(agent(attempt, 1, 3, env=spare))
    assert [n[0] for n in late["nodes"]] == [0, 2], "it joins the head later"


def test_more_missing_agents_than_spare_nodes(attempt: Attempt) -> None:
    error = one(agent(attempt, 0, 3, timeout_s=0.5, env={"SPARE_NODES": "1"}))
    assert error["error"].startswith("1 of 3 agents came within ")


needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpirun (apt-get install openmpi-bin) and mpi4py (pip install '.[mpi]')",
)
needs_mpi4py = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py (pip install '.[mpi]')"
)


def mpirun(count: int) -> list[str]:
    return ["mpirun", "-n", str(count), "--allow-run-as-root", "--oversubscribe"]


def exchanged(agents: Sequence["subprocess.Popen[str]"]) -> tuple[list[Result], str]:
    """Return what the agents printed, and the log of the first one."""
    found = [results(process) for process in agents]
    return [rosters[0] for rosters, _ in found], found[0][1]


@needs_mpirun
def test_mpi_exchange_gives_every_agent_the_roster(attempt: Attempt) -> None:
    head = agent(attempt, 0, 3, 30, launcher=mpirun(3))
    rosters, log = exchanged([head, *(agent(attempt, n, 3, 30) for n in (1, 2))])
    assert {r["method"] for r in rosters} == {"mpi"}, log
    assert all(r["nodes"] == rosters[0]["nodes"] for r in rosters)
    assert [n[0] for n in rosters[0]["nodes"]] == [0, 1, 2]
    assert {n[2] for n in rosters[0]["nodes"]} == {r["pid"] for r in rosters}
    assert "bootstrap: 3 agents by mpi in " in log
    assert not attempt.rendezvous_file.exists()


# Launchers of ranks that fail, with a part of the reason in the log.
FAILURES = {
    "missing": (["/no/such/srun"], "No such file"),
    "refused": (["sh", "-c", "echo no PMIx here; exit 1"], "no PMIx here"),
    "crash after start": (["sh", "-c", "sleep 0.2; kill -SEGV $$"], "the ranks wrote no roster"),
    "hang": (["sh", "-c", "exec sleep 60"], "no allgather within "),
    "one world per rank": (["env", "SLURMD_NODENAME=host-0"], "a world of 1 ranks where 2 were"),
    "no library": (
        ["env", "OMPI_COMM_WORLD_RANK=0", "MPI4PY_LIBMPI=/no/such/libmpi.so"],
        "cannot load MPI library",
    ),
    "init": (
        ["env", "OMPI_COMM_WORLD_RANK=0", "OMPI_MCA_pml=no-such-component"],
        "TCP takes over",  # the output of MPI before it aborts varies
    ),
}


@needs_mpi4py
@pytest.mark.parametrize("how", FAILURES)
def test_tcp_takes_over_if_mpi_fails(attempt: Attempt, how: str) -> None:
    launcher, reason = FAILURES[how]
    head = agent(attempt, 0, 2, 2 if how == "hang" else 30, launcher=launcher)
    rosters, log = exchanged([head, agent(attempt, 1, 2, 30)])
    assert [r["method"] for r in rosters] == ["tcp", "tcp"], rosters
    assert "the exchange of addresses by MPI failed, TCP takes over" in log
    assert reason in log


@needs_mpirun
def test_agents_agree_if_mpi_ends_too_late(attempt: Attempt) -> None:
    """Rank 0 finds that node 0 has decided for TCP and writes no roster."""
    late = ["sh", "-c", 'sleep 6; exec "$@"', "sh", *mpirun(2)]
    head = agent(attempt, 0, 2, 4.0, launcher=late, env=TOGETHER)
    other = agent(attempt, 1, 2, 4.0, env=TOGETHER)
    let_start(head, other)
    rosters, log = exchanged([head, other])
    assert [r["method"] for r in rosters] == ["tcp", "tcp"], log


@needs_mpirun
def test_roster_of_earlier_execution_is_ignored(attempt: Attempt) -> None:
    first = [agent(attempt, 0, 2, 30, launcher=mpirun(2)), agent(attempt, 1, 2, 30)]
    before, _ = exchanged(first)
    again = {"SLURM_RESTART_COUNT": "1"}
    early = agent(attempt, 1, 2, 30, env=again)
    head = agent(attempt, 0, 2, 30, env=again, launcher=mpirun(2))
    rosters, log = exchanged([head, early])
    assert rosters[0]["nodes"] == rosters[1]["nodes"] != before[0]["nodes"], log
    assert {r["method"] for r in rosters} == {"mpi"}


def test_job_of_one_node_uses_loopback() -> None:
    assert job_address(None, [socket.gethostname()]) == LOOPBACK
    assert job_address(None, [socket.gethostname()] * 3) == LOOPBACK


def test_address_is_the_source_of_packets_to_another_node() -> None:
    assert job_address(None, [socket.gethostname(), "127.0.0.2"]) == LOOPBACK


def test_address_of_named_interface() -> None:
    assert job_address("lo", ["elsewhere"]) == LOOPBACK


def test_unknown_interface_error_lists_known_interfaces() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.interface='ib7' is not known") as refused:
        job_address("ib7", [])
    assert "lo" in refused.value.hint
