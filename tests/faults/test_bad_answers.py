"""Engines that answer 200 with something else than an answer."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import Served
from tests.support.runs import until
from tests.support.simulator import MODEL, simulator

REQUESTS = 9


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A good engine and two bad ones."""
    folder: Path = tmp_path_factory.mktemp("bad")
    with (
        simulator() as good,
        simulator("--bad-answers", "html") as html,
        simulator("--bad-answers", "half") as half,
    ):
        urls = ",".join(rank.url for rank in (good, html, half))
        words = ("--workers", urls, f"model.name={MODEL}", "router=round_robin")
        with routing(folder, *words) as served:
            until("all", lambda: [row["state"] for row in rows(served)] == ["ready"] * 3)
            yield served


def test_stream_that_ends_early_is_no_complete_answer(served: Served) -> None:
    errors = list[str]()
    for _ in range(REQUESTS):
        create = served.client.completions.create
        chunks = create(model=MODEL, prompt="Hi", max_tokens=4, stream=True)
        reasons = list[str | None]()
        try:
            reasons += [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
            assert reasons[-1] == "length"
        except openai.APIError as e:
            errors.append(e.message)
    # A stream ends once two workers have failed with it.
    assert all("ended early" in error or "with HTML" in error for error in errors), errors


def test_bad_answers_never_reach_the_client(served: Served) -> None:
    for _ in range(REQUESTS):
        answer = served.client.completions.create(model=MODEL, prompt="Hi", max_tokens=4)
        assert answer.usage
        assert answer.usage.completion_tokens == 4


@pytest.mark.slow_fault
def test_engine_behind_route_that_computes_nothing_is_left(tmp_path: Path) -> None:
    with simulator() as good, simulator("--hang-after-requests", "4") as hanging:
        words = ("--workers", f"{good.url},{hanging.url}", f"model.name={MODEL}")
        timeout = ("engine.hang_timeout_s=2", "router=round_robin")
        with routing(tmp_path, *words, *timeout) as served:
            for _ in range(2 * REQUESTS):
                answer = served.client.completions.create(model=MODEL, prompt="Hi", max_tokens=4)
                assert answer.usage
            until("its state", lambda: [r["state"] for r in rows(served)] == ["ready", "failed"])
            assert "hangs: no progress" in rows(served)[1]["detail"]
