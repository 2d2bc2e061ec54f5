"""The head and its agents: suspended, cut off and killed."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.faults.test_hangs import ask
from tests.integration.serving.served import Served, serving
from tests.support.faults import engines
from tests.support.runs import (
    SIMULATOR,
    each_once,
    hpc_dynamo,
    latest,
    results_on_disk,
    until,
    write_prompts,
)

TWO_NODES = ("topology=aggregated", "topology.nodes=2", "topology.aggregated.workers=2")
SHORT = ("cluster.heartbeat_timeout_s=3", "cluster.preflight=false")
SUSPENDED_S = 5.0  # longer than the timeout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("head"), *TWO_NODES, *SHORT) as served:
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


def test_suspended_head_and_job_keep_all_workers(served: Served) -> None:
    """First only the head, then all processes but the engines, as by `scontrol suspend`."""
    before, urls = engines(served.attempt.path), ready(served)
    assert len(urls) == 2
    suspend(served.head)
    assert ask(served)
    suspend(served.head, *agents(served).values())
    assert ask(served)
    assert served.attempt.outcome() is None
    assert ready(served) == urls
    assert engines(served.attempt.path) == before
    assert "is gone" not in served.attempt.agent_log(0).read_text()


def test_silent_node_gets_no_requests_and_rejoins_with_its_engines(served: Served) -> None:
    before, urls = engines(served.attempt.path), ready(served)
    agent = agents(served)[1]
    os.kill(agent, signal.SIGSTOP)
    try:
        until("it is noticed", lambda: len(ready(served)) == 1)
        assert ask(served)
    finally:
        os.kill(agent, signal.SIGCONT)
    until("it is back", lambda: ready(served) == urls)
    assert ask(served)
    assert engines(served.attempt.path) == before, "an engine was restarted"


def test_killed_head_is_replaced_and_engines_continue(served: Served) -> None:
    """Same URL and key; agents, engines and their weights stay."""
    before, urls, processes = engines(served.attempt.path), ready(served), agents(served)
    for _ in range(2):
        killed = served.head
        os.kill(killed, signal.SIGKILL)
        until("another head", partial(other_head, served, killed))
        until("it serves", lambda: serves(served))
        until("all workers", lambda: ready(served) == urls)
        assert ask(served)
    assert engines(served.attempt.path) == before
    assert agents(served) == processes
    assert served.attempt.outcome() is None


def other_head(served: Served, killed: int) -> bool:
    return served.head not in (0, killed)


def has_results(run: Path, count: int) -> bool:
    return run.exists() and results_on_disk(run) >= count


def serves(served: Served) -> bool:
    with closing(served.connect()) as connection, suppress(OSError, HTTPException):
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    return False


def test_batch_with_killed_heads_has_each_result_once(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 120)
    words = (*SIMULATOR, *TWO_NODES, *SHORT, "engine.args.time-scale=5", "batch.concurrency=8")
    run = tmp_path / "runs" / "b"
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(
            hpc_dynamo, "batch", *words, "input=prompts.jsonl", "name=b", cwd=tmp_path
        )
        for results in (10, 50):
            until("results", partial(has_results, run, results))
            killed = Served(latest(run)).head
            os.kill(killed, signal.SIGKILL)
        assert done.result().returncode == 0, done.result().stdout + done.result().stderr
    each_once(run, ids)
