"""Sleeping workers receive no requests until they are woken."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.serving.served import MODEL, Reply, Served, kill, restart_head, serving
from tests.support.runs import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=aggregated", "topology.aggregated.workers=2", "engine.sleep_mode=true")
    own = ("planner.drain_timeout_s=5", "router=least_loaded")
    with serving(tmp_path_factory.mktemp("naps"), *words, *own) as served:
        until("both", lambda: len(awake(served)) == 2)
        yield served


def awake(served: Served) -> set[int]:
    rows = served.ask("GET", "/v1/workers").json["data"]
    return {row["rank"] for row in rows if row["state"] == "ready" and not row["asleep"]}


def put(served: Served, rank: int, how: str) -> Reply:
    return served.post(f"/v1/workers/{rank}/{how}", {})


def computed(served: Served) -> list[float]:
    rows = sorted(served.workers()["aggregated"], key=lambda row: int(row["rank"]))
    return [served.engine(row["url"])["vllm:generation_tokens_total"] for row in rows]


def send(served: Served, tokens: int = 2) -> Reply:
    body = {"model": MODEL, "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
    return served.post("/v1/completions", body)


def test_sleeping_worker_receives_no_requests_until_woken(served: Served) -> None:
    assert put(served, 1, "sleep").json == {"rank": 1, "asleep": True}
    until("the states of the workers", lambda: awake(served) == {0})
    assert put(served, 1, "sleep").status == 200  # it does already
    before = computed(served)
    assert [send(served).status for _ in range(4)] == [200] * 4
    assert computed(served) == [before[0] + 8, before[1]]
    assert put(served, 1, "wake").json == {"rank": 1, "asleep": False}
    until("the states of the workers", lambda: awake(served) == {0, 1})
    with ThreadPoolExecutor(4) as pool:
        assert {r.status for r in pool.map(lambda _: send(served, 100), range(4))} == {200}
    assert computed(served)[1] > before[1]


def test_running_requests_finish_before_the_worker_sleeps(served: Served) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(send, served, 200) for _ in range(4)]
        until("all are at work", lambda: served.busy() == 4)
        assert put(served, 0, "sleep").status == 200
        assert [a.result().status for a in answers] == [200] * 4
    assert put(served, 0, "wake").status == 200


def test_worker_that_does_not_drain_in_time_stays_awake(served: Served) -> None:
    long: Any = {"prompt": "hello", "max_tokens": 8000, "extra_body": {"ignore_eos": True}}
    with served.client.completions.create(model=MODEL, stream=True, **long) as stream:
        next(iter(stream))
        busy = next(rank for rank, n in enumerate(_running(served)) if n)
        refused = put(served, busy, "sleep")
        assert refused.status == 409
        assert "still has requests after 5 s" in refused.json["error"]["message"]
        assert awake(served) == {0, 1}
    assert send(served).status == 200


def _running(served: Served) -> list[float]:
    rows = sorted(served.workers()["aggregated"], key=lambda row: int(row["rank"]))
    return [served.engine(row["url"])["vllm:num_requests_running"] for row in rows]


def test_sleeping_worker_stays_asleep_when_the_head_is_restarted(served: Served) -> None:
    assert put(served, 1, "sleep").status == 200
    restart_head(served)
    until("both workers", lambda: len(served.workers().get("aggregated", [])) == 2)
    assert awake(served) == {0}
    before = computed(served)
    assert [send(served).status for _ in range(4)] == [200] * 4
    assert computed(served) == [before[0] + 8, before[1]]
    assert put(served, 1, "wake").status == 200
    until("the states of the workers", lambda: awake(served) == {0, 1})


def test_worker_killed_while_asleep_restarts_awake(served: Served) -> None:
    assert put(served, 1, "sleep").status == 200
    row = next(r for r in served.workers()["aggregated"] if r["rank"] == 1)
    kill(served.pid_of(row["url"]))
    until("its next life", lambda: awake(served) == {0, 1})


def test_unknown_worker_is_answered_with_404(served: Served) -> None:
    def missing() -> bool:
        refused = put(served, 7, "sleep")
        assert refused.status == 404
        body_text = str(refused.json["error"]["message"])
        return "no worker 7 is ready; those that are: 0, 1" in body_text

    until("both are listed, also after a death", missing)
    assert served.ask("GET", "/v1/workers/1/sleep").status == 405


def test_worker_without_sleep_mode_is_answered_with_409(aggregated: Served) -> None:
    refused = put(aggregated, 0, "sleep")
    assert refused.status == 409
    assert "engine.sleep_mode=true" in refused.json["error"]["message"]
