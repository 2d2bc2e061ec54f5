"""Two models in one job: routing, separation, and the loss of one of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.serving.served import Served, kill, serving
from tests.support.runs import hpc_dynamo, until

pytestmark = pytest.mark.slow

WORDS = (
    *("models.small.topology=aggregated", "models.small.topology.aggregated.workers=2"),
    *("models.large.topology=disaggregated", "models.large.engine.args.pd-protocol=sglang"),
    "serve.frontend_processes=2",
)
PAIR = (
    *("topology=aggregated", "engine.max_restarts=0", "models.one.path=''", "models.two.path=''"),
    *("serve.max_requests_per_worker=1", "serve.max_queued_requests=1"),
)
STORY = "One day a fox met a hen and told it of a far land. " * 8
LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 8000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Served]:
    """A small model of two workers with a tokenizer, and a large one, disaggregated."""
    words = (*WORDS, f"models.small.path={model_folder}")
    with serving(tmp_path_factory.mktemp("both"), *words) as served:
        yield served


def workers(served: Served, model: str) -> list[dict[str, Any]]:
    rows = served.ask("GET", "/v1/workers").json["data"]
    return [row for row in rows if row["model"] == model]


def computed(served: Served, model: str) -> float:
    """Return the tokens that all workers of a model have generated."""
    engines = [served.engine(row["url"]) for row in workers(served, model)]
    return sum(engine["vllm:generation_tokens_total"] for engine in engines)


def test_each_model_has_its_own_topology(both: Served) -> None:
    assert [m.id for m in both.client.models.list().data] == ["small", "large"]
    assert both.client.models.retrieve("large").id == "large"
    roles = {m: [row["role"] for row in workers(both, m)] for m in ("small", "large")}
    assert roles == {"small": ["aggregated"] * 2, "large": ["prefill", "decode"]}
    ready = both.ask("GET", "/ready").json
    assert ready == {"status": "ready", "models": {"small": "ready", "large": "ready"}}


@pytest.mark.parametrize(("requested", "other"), [("small", "large"), ("large", "small")])
def test_request_runs_on_workers_of_its_model(both: Served, requested: str, other: str) -> None:
    before = computed(both, requested), computed(both, other)
    for _ in range(4):  # connections go to one frontend or the other
        answer = both.client.completions.create(model=requested, prompt=STORY, max_tokens=5)
        assert answer.model == requested
        assert len(answer.choices[0].text.split()) == 5
    assert computed(both, requested) >= before[0] + 4 * 5
    assert computed(both, other) == before[1]


def test_streams_of_both_models_run_at_the_same_time(both: Served) -> None:
    def said(model: str) -> tuple[str, set[str]]:
        messages: Any = [{"role": "user", "content": f"Of what do {model} foxes tell?"}]
        send: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 40}
        chunks = list(both.client.chat.completions.create(**send, stream=True))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        whole = both.client.chat.completions.create(**send).choices[0].message.content
        assert text == whole
        return text, {c.model for c in chunks}

    with ThreadPoolExecutor(8) as pool:
        metric = {m: [pool.submit(said, m) for _ in range(4)] for m in ("small", "large")}
        for model, answers in metric.items():
            assert {model} == set().union(*(each.result()[1] for each in answers))


def test_each_model_has_its_own_tokenizer_and_router(both: Served) -> None:
    small, large = (
        both.post("/v1/route", {"model": model, "prompt": STORY}).json
        for model in ("small", "large")
    )
    assert (small["model"], small["tokens"], small["reason"]) == ("small", len(STORY), "aggregated")
    assert [w["rank"] for w in small["workers"]] == [0, 1]
    assert (large["model"], large["tokens"], large["reason"]) == ("large", 0, "disaggregated")
    assert [w["rank"] for w in large["workers"]] == [2, 3]


def test_request_must_name_a_known_model(both: Served) -> None:
    send: dict[str, Any] = {"prompt": "hello", "max_tokens": 1}
    with pytest.raises(openai.NotFoundError, match="known: small, large") as missing:
        both.client.completions.create(model="medium", **send)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    unnamed = both.post("/v1/completions", send)
    assert unnamed.status == 400
    assert unnamed.json["error"]["message"] == "the body names no model; known: small, large"
    assert both.post("/v1/completions", send | {"model": 7}).status == 400


def test_metrics_have_the_model_as_a_label(both: Served) -> None:
    both.client.completions.create(model="large", prompt="hello", max_tokens=1)
    page = both.metrics_now()
    counted = 'hpc_dynamo_requests_total{model="large",path="/v1/completions",status="200"}'
    assert page[counted] >= 1
    assert page['hpc_dynamo_router_prefills_total{model="large",reason="disaggregated"}'] >= 1
    assert 'hpc_dynamo_requests_waiting{model="small"}' in page


def test_kv_events_are_indexed_for_their_model(both: Served) -> None:
    metric = 'hpc_dynamo_router_index_blocks{model="%s",source="events"}'
    before = both.metrics_now()[metric % "large"]
    new = f"{both.attempt.run.path} {STORY}"
    both.client.completions.create(model="small", prompt=new, max_tokens=1)

    def known_models() -> int:
        why = both.post("/v1/route", {"model": "small", "prompt": new}).json
        return int(max(w["overlap_blocks"] for w in why["workers"]))

    until("events have come", lambda: both.metrics().get(metric % "small"), 10)
    assert known_models() == len(new) // 16
    assert both.metrics_now()[metric % "large"] == before


def test_command_line_shows_models_and_requires_one(both: Served) -> None:
    folder, run = both.attempt.run.path, both.attempt.run.path.name
    shown = hpc_dynamo("status", "--once", f"name={run}", cwd=folder.parent.parent).stdout
    assert "small, large answer on" in shown
    assert "model small: " in shown
    assert "model large: " in shown
    vague = hpc_dynamo("chat", str(folder), "hello", cwd=folder)
    assert vague.returncode == 3
    assert "several models: small, large" in vague.stderr
    words = ("--model", "large", "--max-tokens", "3", "hello")
    assert len(hpc_dynamo("chat", str(folder), *words, cwd=folder).stdout.split()) == 3


def refusal(served: Served, model: str) -> openai.APIStatusError | None:
    try:
        served.client.completions.create(model=model, prompt="hello", max_tokens=1)
    except openai.APIStatusError as e:
        return e
    return None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Served]:
    """Two models of one worker each, which runs one request; one more is queued."""
    with serving(tmp_path, *PAIR) as served:
        yield served


def test_overload_and_loss_of_a_model_do_not_affect_the_other(pair: Served) -> None:
    with pair.client.completions.create(model="one", **LONG, stream=True) as stream:
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(refusal, pair, "one")
            queued = 'hpc_dynamo_requests_waiting{model="one"}'
            until("one waits", lambda: pair.metrics().get(queued) == 1, 10)
            assert isinstance(refusal(pair, "one"), openai.RateLimitError)
            assert refusal(pair, "two") is None
            (worker,) = workers(pair, "one")
            kill(pair.pid_of(worker["url"]))
            lost = waiting.result()
    for error in (lost, refusal(pair, "one")):
        assert error is not None
        assert error.status_code == 503
        assert "no aggregated worker of model one is left" in error.message
    assert refusal(pair, "two") is None
    state = pair.ask("GET", "/ready")
    assert (state.status, state.json["models"]) == (
        200,
        {"one": "lost", "two": "ready"},
    )
    (worker,) = workers(pair, "two")
    kill(pair.pid_of(worker["url"]))
    outcome = until("the job is over", pair.attempt.outcome, 30)
    assert outcome.exit_code == 1
    assert "no aggregated worker of model two is left" in outcome.message


def test_model_that_never_starts_does_not_block_the_others(tmp_path: Path) -> None:
    words = ("models.well.path=''", "models.ill.engine.args.unheard-of=1")
    with serving(tmp_path, "topology=aggregated", "engine.max_restarts=0", *words) as served:
        assert served.ask("GET", "/ready").json["models"] == {"well": "ready", "ill": "lost"}
        assert [m.id for m in served.client.models.list().data] == ["well"]
        assert refusal(served, "well") is None
        error = refusal(served, "ill")
        assert error is not None
        assert error.status_code == 503
        assert "unheard-of" in error.message
