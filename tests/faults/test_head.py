"""The head and its agents: suspended, cut off and killed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_hangs import ask
from tests.integration.serving.served import Served, serves, serving
from tests.support.batches import background_batch
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import engines
from tests.support.runs import (
    SIMULATOR,
    latest,
    until,
)
from tests.support.tiny_models import byte_tokenizer

TWO_NODES = ("topology=aggregated", "topology.nodes=2", "topology.aggregated.workers=2")
SHORT = ("cluster.heartbeat_timeout_s=3", "cluster.preflight=false")
KEPT = "nothing is lost"
SLEEP = "engine.sleep_mode=true"
SUSPENDED_S = 5.0  # longer than the timeout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("head")
    model = byte_tokenizer(folder / "bytes")  # for routing by cached blocks
    with serving(folder, *TWO_NODES, *SHORT, SLEEP, f"model.path={model}") as served:
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
    """First node 0, then all processes but the engines, as by `scontrol suspend`."""
    before, urls, head = engines(served.attempt.path), ready(served), served.head
    assert len(urls) == 2
    row = fault("SIGSTOP of head and agent of node 0 for longer than their timeout", KEPT)
    suspend(served.task, head)
    row.injected()
    row.requests(len(ask(served)))
    row.recovered()
    row = fault("SIGSTOP of head and agents for longer than their timeout", KEPT)
    suspend(*agents(served).values(), head)
    row.injected()
    row.requests(len(ask(served)))
    row.recovered()
    assert served.head == head
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


def kill_head(head: int) -> None:
    os.kill(head, signal.SIGKILL)


def stop_head(head: int) -> None:
    """Stop it for good: it hangs."""
    os.kill(head, signal.SIGSTOP)


def kill_supervisor_of_head(head: int) -> None:
    stat = Path(f"/proc/{head}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)


LOST_HEAD = {
    "kill -9 the head": kill_head,
    "SIGSTOP the head for good": stop_head,
    "kill -9 the supervisor of the head": kill_supervisor_of_head,
}


@pytest.mark.parametrize("name", LOST_HEAD)
def test_lost_head_is_replaced_and_engines_continue(
    served: Served, fault: FaultRecorder, name: str
) -> None:
    """Same URL and key; agents, engines, their weights and the index of cached blocks stay."""
    before, urls, processes = engines(served.attempt.path), ready(served), agents(served)
    prompts = [[fault.chance.randrange(256) for _ in range(80)] for _ in range(10)]
    for prompt in prompts:
        assert served.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}).status == 200
    cached = until("cached blocks", lambda: known_blocks(served, prompts))
    lost = served.head
    row = fault(name, "the same URL answers, engines and index of cached blocks stay")
    LOST_HEAD[name](lost)
    until("another head", lambda: served.head != lost)
    until("it serves", lambda: serves(served))
    row.recovered()
    until("all workers", lambda: ready(served) == urls)
    row.requests(len(ask(served)))
    until("the same cached blocks", lambda: known_blocks(served, prompts) >= cached)
    assert engines(served.attempt.path) == before
    assert agents(served) == processes
    assert served.attempt.outcome() is None


def known_blocks(served: Served, prompts: list[list[int]]) -> int:
    """Return the number of blocks that the router knows on the best worker of each prompt."""
    found = [served.post("/v1/route", {"prompt": prompt}).json["workers"] for prompt in prompts]
    best = [max(worker["overlap_blocks"] for worker in workers) for workers in found]
    return sum(best) if all(best) else 0


def test_batch_with_killed_heads_has_each_result_once(tmp_path: Path, fault: FaultRecorder) -> None:
    words = (*SIMULATOR, *TWO_NODES, *SHORT, "engine.args.time-scale=5", "batch.concurrency=8")
    row = fault("kill -9 the head of a batch twice", "each result once")
    with background_batch(tmp_path, 120, *words) as batch:
        for results in (fault.chance.randrange(5, 20), fault.chance.randrange(40, 60)):
            batch.wait_for_results(results)
            os.kill(Served(latest(batch.run)).head, signal.SIGKILL)
        batch.succeed()
    row.requests(120)


def test_killed_task_of_node_0_leaves_nothing(tmp_path: Path, fault: FaultRecorder) -> None:
    """The head ends the agent of the other node, then itself."""
    with serving(tmp_path, *TWO_NODES, *SHORT) as served:
        row = fault("kill -9 the task of node 0", "the job ends, nothing is left")
        os.kill(served.task, signal.SIGKILL)
        until("nothing is left", lambda: not served.processes())
        row.recovered()
        assert "stop: stopped" in served.attempt.agent_log(1).read_text()


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
