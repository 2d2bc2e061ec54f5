"""The head and its agents: suspended, cut off and killed."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.test_hangs import ask
from tests.integration.serving.served import Served, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import engines
from tests.support.runs import until

TWO_NODES = ("topology=aggregated", "topology.nodes=2", "topology.aggregated.workers=2")
SHORT = ("cluster.heartbeat_timeout_s=3", "cluster.preflight=false")
SLEEP = "engine.sleep_mode=true"
SUSPENDED_S = 5.0  # longer than the timeout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("head"), *TWO_NODES, *SHORT, SLEEP) as served:
        until("both workers", lambda: len(ready(served)) == 2)
        yield served


def agents(served: Served) -> dict[int, int]:
    """Return the process ids of the agents by node."""
    return {record.node: record.pid for record in served.attempt.nodes()}


def ready(served: Served) -> list[str]:
    """Return the URLs of the ready workers."""
    return [str(row["url"]) for row in served.workers().get("aggregated", [])]


def suspend(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(SUSPENDED_S)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_suspended_head_and_job_keep_all_workers(served: Served, fault: FaultRecorder) -> None:
    """As by `scontrol suspend`, first of node 0, then of all nodes."""
    before, urls = engines(served.attempt.path), ready(served)
    assert len(urls) == 2
    row = fault("SIGSTOP of the head for longer than its timeout", "nothing is lost")
    suspend(agents(served)[0])
    row.injected()
    row.requests(len(ask(served)))
    row.recovered()
    row = fault("SIGSTOP of head and agents for longer than their timeout", "nothing is lost")
    suspend(*agents(served).values())
    row.injected()
    row.requests(len(ask(served)))
    row.recovered()
    assert served.attempt.outcome() is None
    assert ready(served) == urls
    assert engines(served.attempt.path) == before
    assert "is gone" not in served.attempt.agent_log(0).read_text()


def test_silent_node_gets_no_requests_and_rejoins_with_its_engines(
    served: Served, fault: FaultRecorder
) -> None:
    before, urls = engines(served.attempt.path), ready(served)
    agent = agents(served)[1]
    promise = "no requests meanwhile; it rejoins with its engines"
    row = fault("SIGSTOP of the agent of one node for longer than its timeout", promise)
    os.kill(agent, signal.SIGSTOP)
    try:
        until("it is noticed", lambda: len(ready(served)) == 1)
        row.requests(len(ask(served)))
    finally:
        os.kill(agent, signal.SIGCONT)
        row.injected()
    until("it is back", lambda: ready(served) == urls)
    row.recovered()
    row.requests(len(ask(served)))
    assert engines(served.attempt.path) == before, "an engine was restarted"


def test_sleeping_worker_of_a_silent_node_is_asleep_when_it_rejoins(served: Served) -> None:
    assert served.post("/v1/workers/1/sleep", {}).status == 200
    agent = agents(served)[1]
    os.kill(agent, signal.SIGSTOP)
    try:
        until("it is noticed", lambda: len(ready(served)) == 1)
    finally:
        os.kill(agent, signal.SIGCONT)
    until("it is back", lambda: len(ready(served)) == 2)
    rows = served.ask("GET", "/v1/workers").json["data"]
    assert [row["rank"] for row in rows if row["asleep"]] == [1]
    assert ask(served)
    assert served.post("/v1/workers/1/wake", {}).status == 200
