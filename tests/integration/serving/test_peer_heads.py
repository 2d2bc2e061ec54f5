"""Two heads of `route` in front of the same engines exchange their loads."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.processes import free_port
from tests.integration.serving.routed import routing
from tests.integration.serving.served import Served
from tests.support.runs import until
from tests.support.simulator import MODEL, simulator

pytestmark = pytest.mark.slow

BODY = {"model": MODEL, "prompt": list(range(64)), "max_tokens": 1}


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[list[Served]]:
    """Two heads in front of the same two slow engines."""
    (tmp_path / "slow.json").write_text(json.dumps({"decode_s": 0.2}))
    (tmp_path / "api.key").write_text("shared")
    slow = ("--timing", str(tmp_path / "slow.json"))
    ports = [free_port(), free_port()]
    peers = ",".join(f"http://127.0.0.1:{port}" for port in ports)  # each finds itself there too
    with ExitStack() as stack:
        ranks = [stack.enter_context(simulator(*slow)) for _ in range(2)]
        words = ["--workers", ",".join(rank.url for rank in ranks)]
        words += ["serve.api_key_file=api.key", "router=least_loaded"]
        yield [
            stack.enter_context(
                routing(
                    tmp_path,
                    *words,
                    f"serve.port={own}",
                    f"route.peers={peers}",
                    name=f"head-{own}",
                )
            )
            for own in ports
        ]


def seen_load(head: Served) -> list[dict[str, Any]]:
    """Return the workers as the head's router sees them now."""
    rows: list[dict[str, Any]] = head.post("/v1/route", BODY).json["workers"]
    return rows


def loads(head: Served) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = head.ask("GET", "/v1/loads").json["workers"]
    return found


def peer_load(head: Served) -> list[int]:
    return sorted(row["others"]["active"] for row in seen_load(head))


@contextmanager
def answering(head: Served, count: int) -> Iterator[None]:
    """Keep `count` streams of a head running."""
    with ExitStack() as stack:
        for _ in range(count):
            create, endless = head.client.completions.create, {"ignore_eos": True}
            stream = create(
                model=MODEL, prompt="Hi", max_tokens=1000, stream=True, extra_body=endless
            )
            assert next(iter(stack.enter_context(stream)))
        yield


@contextmanager
def stopped_frontends(head: Served) -> Iterator[None]:
    """Stop the frontends of a head: they accept connections and do not answer."""
    pids = head.frontends().values()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_load_of_a_head_counts_for_the_other(heads: list[Served]) -> None:
    one, two = heads
    until("all workers", lambda: [len(seen_load(head)) for head in heads] == [2, 2])
    with answering(one, 1):
        until("the news", lambda: peer_load(two) == [0, 1])
        (busy,) = [row for row in seen_load(two) if row["others"]["active"]]
        assert (busy["cost"], busy["active"]) == (1, 0)
        with answering(two, 1):
            assert [row["active"] for row in seen_load(two) if row["rank"] != busy["rank"]] == [1]
            until("ours too", lambda: peer_load(one) == [0, 1])
    until("the end", lambda: peer_load(one) == peer_load(two) == [0, 0])


def test_silent_head_is_no_longer_counted(heads: list[Served]) -> None:
    one, two = heads
    with answering(one, 2):
        until("the news", lambda: sum(peer_load(two)) == 2)
        with stopped_frontends(one):
            until("it is dropped", lambda: peer_load(two) == [0, 0])
        until("it is back", lambda: sum(peer_load(two)) == 2)
    assert "is no longer counted" in two.attempt.agent_log(0).read_text()


def test_loads_require_the_api_key(heads: list[Served]) -> None:
    one, _ = heads
    assert one.ask("GET", "/v1/loads", headers={}).status == 401
    assert one.post("/v1/loads", {}).status == 405
    until("both workers", lambda: len(loads(one)) == 2)
    with answering(one, 1):
        busy = [load for load in loads(one).values() if load["active"]]
        assert [load["active"] for load in busy] == [1]
