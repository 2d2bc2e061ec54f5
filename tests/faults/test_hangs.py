"""Engines that hang: stopped, or alive without producing tokens."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving.served import MODEL, Served, serving
from tests.support.batches import background_batch
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import ended, engines, port_of, stopped, supervisors
from tests.support.runs import (
    SIMULATOR,
    latest,
    until,
)

HANG = (
    *("engine.hang_timeout_s=4", "engine.stop_timeout_s=60", "engine.max_restarts=20"),
    "cluster.heartbeat_timeout_s=3",
)
PAIR = ("topology=aggregated", "topology.aggregated.workers=2", "router=round_robin")
REQUESTS = 6
MOVED = "its requests move after `engine.hang_timeout_s`, here 4 s"


def ask(served: Served, count: int = REQUESTS, **fields: Any) -> list[str]:
    """Send requests at the same time and return their texts."""

    def complete(number: int) -> str:
        prompt = f"request {number}"
        create = served.client.completions.create
        answer = create(model=MODEL, prompt=prompt, max_tokens=4, **fields)
        assert answer.usage
        assert answer.usage.completion_tokens == 4
        return str(answer.choices[0].text)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(complete, range(count)))


def hangs(served: Served) -> dict[str, float]:
    """Return the hangs of each worker by rank."""
    name = "hpc_dynamo_worker_hangs_total"
    rows = served.metrics().items()
    return {key.partition('rank="')[2].partition('"')[0]: v for key, v in rows if name in key}


def all_ready(served: Served) -> None:
    until("all workers", lambda: served.ask("GET", "/ready").status == 200)


def both_ready(served: Served) -> None:
    until("both workers", lambda: len(served.workers().get("aggregated", [])) == 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("pair"), *PAIR, *HANG) as served:
        yield served


@pytest.fixture(scope="module")
def disaggregated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=disaggregated", "router.conditional_disaggregation=false", *HANG)
    with serving(tmp_path_factory.mktemp("pd"), *words) as served:
        yield served


def test_requests_on_stopped_engine_move_to_other_worker(
    pair: Served, fault: FaultRecorder
) -> None:
    both_ready(pair)
    before = hangs(pair)
    stopped_row = fault.chance.choice(pair.workers()["aggregated"])
    (engine,) = engines(pair.attempt.path, port_of(stopped_row["url"]))
    row = fault("SIGSTOP of one of two aggregated engines, for good", MOVED)
    with stopped(engine):
        assert len(set(ask(pair))) == REQUESTS
    row.recovered()
    row.requests(REQUESTS)
    rank = str(stopped_row["rank"])
    until("it is counted", lambda: hangs(pair)[rank] == before[rank] + 1)
    log = pair.attempt.agent_log(0).read_text()
    assert f"worker {rank} (aggregated)" in log
    assert "hangs: no progress for" in log
    until("it is back", lambda: len(pair.workers()["aggregated"]) == 2)


@pytest.mark.slow_fault
def test_idle_engine_that_is_stopped_is_restarted_with_stopped_supervisor(
    pair: Served, fault: FaultRecorder
) -> None:
    """The supervisor cannot kill its engine, so its session is killed."""
    both_ready(pair)
    url = next(row["url"] for row in pair.workers()["aggregated"] if row["rank"] == 1)
    (engine,) = engines(pair.attempt.path, port_of(url))
    (supervisor,) = supervisors(pair.attempt.path, port_of(url))
    row = fault("SIGSTOP of an idle engine and its supervisor", "both are killed and restarted")
    with stopped(supervisor), stopped(engine):
        until("its state", lambda: "hangs" in detail(pair, 1))
        until("another one", lambda: new_urls(pair, url), 60)
    row.recovered()
    assert ended(engine)
    assert ask(pair)


def detail(served: Served, rank: int) -> str:
    rows = served.ask("GET", "/v1/workers").json["data"]
    return str(next(row["detail"] for row in rows if row["rank"] == rank))


def new_urls(served: Served, old: str) -> bool:
    urls = [row["url"] for row in served.workers().get("aggregated", [])]
    return len(urls) == 2 and old not in urls


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_only_engine_of_a_role_is_stopped(
    disaggregated: Served, role: str, fault: FaultRecorder
) -> None:
    all_ready(disaggregated)
    url = disaggregated.workers()[role][0]["url"]
    (engine,) = engines(disaggregated.attempt.path, port_of(url))
    row = fault(f"SIGSTOP of the only {role} engine, for good", "requests wait for its restart")
    os.kill(engine, signal.SIGSTOP)
    assert len(set(ask(disaggregated))) == REQUESTS
    row.recovered()
    row.requests(REQUESTS)


def test_engine_that_answers_health_but_computes_nothing(
    tmp_path: Path, fault: FaultRecorder
) -> None:
    words = (*PAIR, *HANG, "engine.args.hang-after-requests=20")
    with serving(tmp_path, *words) as served:
        both_ready(served)
        row = fault("engine that answers `/health` and computes nothing", MOVED)
        for _ in range(2):  # worker 0 hangs first: a request is not retried after two hangs
            row.requests(len(ask(served, extra_headers={"X-Worker-Rank": "0"})))
        while not sum(hangs(served).values()):
            assert len(set(ask(served))) == REQUESTS
            row.requests(REQUESTS)
        (rank,) = (int(rank) for rank, count in hangs(served).items() if count)
        log = served.attempt.worker_log(rank)
        until("its stack traces", lambda: "most recent call first" in log.read_text())


def test_stopped_frontend_is_restarted(pair: Served, fault: FaultRecorder) -> None:
    all_ready(pair)
    ((_, before),) = pair.frontends().items()
    promise = "killed and restarted after `cluster.heartbeat_timeout_s`, here 3 s"
    row = fault("SIGSTOP of the only frontend, for good", promise)
    os.kill(before, signal.SIGSTOP)
    until("another process", lambda: pair.frontends().get(0, before) != before)
    until("it serves", lambda: answers_now(pair))
    row.recovered()
    assert "frontend 0 hangs: silent for 3 s" in pair.attempt.agent_log(0).read_text()


def answers_now(served: Served) -> bool:
    with suppress(OSError):
        return served.ask("GET", "/ready").status == 200
    return False


@pytest.mark.slow_fault
def test_sleeping_engine_is_no_hang(tmp_path: Path, fault: FaultRecorder) -> None:
    words = (*PAIR, *HANG, "engine.sleep_mode=true")
    with serving(tmp_path, *words) as served:
        both_ready(served)
        (asleep, awake) = engines_by_rank(served)
        assert served.post("/v1/workers/0/sleep", {}).status == 200
        fault("SIGSTOP of an engine in sleep mode", "no hang until it is woken")
        with stopped(asleep), stopped(awake):
            until("the other hangs", lambda: hangs(served)["1"] == 1)
        assert hangs(served)["0"] == 0
        assert served.post("/v1/workers/0/wake", {}).status == 200
        with stopped(asleep):
            until("awake, it hangs", lambda: hangs(served)["0"] == 1)


def engines_by_rank(served: Served) -> list[int]:
    rows = served.workers()["aggregated"]
    ports = [port_of(row["url"]) for row in sorted(rows, key=lambda row: int(row["rank"]))]
    return [engines(served.attempt.path, port)[0] for port in ports]


@pytest.mark.slow_fault
def test_stopped_shard_of_multi_node_worker(tmp_path: Path, fault: FaultRecorder) -> None:
    """Each node pretends to have one GPU, so that a worker of two takes two agents."""
    words = (
        *(*SIMULATOR, *HANG, "engine.device=cuda", "cluster.gpus_per_node=1"),
        *("cluster.preflight=false", "topology=aggregated", "engine.args.time-scale=10"),
        *("topology.aggregated.tensor_parallel=2", "batch.concurrency=4"),
    )
    with background_batch(tmp_path, 60, *words) as batch:
        batch.wait_for_results(5)
        (follower,) = (pid for pid in engines(latest(batch.run).path) if is_follower(pid))
        row = fault("SIGSTOP of a shard of a worker over two nodes", "the worker is restarted")
        with stopped(follower):
            batch.succeed()
    row.recovered()
    row.requests(60)
    logs = "".join(log.read_text() for log in latest(batch.run).logs.glob("agent-*.log"))
    assert "shard 2 of 2, on" in logs
    assert "hangs: stopped by a signal for 4 s" in logs


def is_follower(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[words.index("--node-rank") + 1] == "1" if "--node-rank" in words else False


def test_batch_with_stopped_engine_ends(tmp_path: Path, fault: FaultRecorder) -> None:
    words = (*SIMULATOR, *PAIR, *HANG, "engine.args.time-scale=6", "batch.concurrency=16")
    with background_batch(tmp_path, 300, *words) as batch:
        batch.wait_for_results(fault.chance.randrange(21, 41))
        row = fault("SIGSTOP of one of two engines of a batch of 300", "it ends within 60 s")
        with stopped(fault.chance.choice(engines(latest(batch.run).path))):
            batch.succeed()
    row.recovered()
    row.requests(300)
