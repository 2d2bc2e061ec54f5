"""The endpoint with the concurrent handoff of SGLang."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import MODEL, Served, kill, serving
from tests.support.runs import until
from tests.support.simulator import simulator

pytestmark = pytest.mark.slow

DIALECT = ("topology=disaggregated", "engine.args.pd-protocol=sglang")
# Without an abort a rank keeps the requests of clients that have left.
KEEPS_ABANDONED = "engine.args.disconnect-check-s=600"
FABLE = "A fox saw a crow in an old elm with a piece of cheese, and said to her: " * 20
ASKED: dict[str, Any] = {"model": MODEL, "prompt": FABLE, "max_tokens": 20}
MOVED = "vllm:nixl_bytes_transferred_sum"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("rooms")
    own = (KEEPS_ABANDONED, f"model.path={model_folder}", "model.name=simulated")
    with serving(folder, *DIALECT, *own) as served:
        yield served


def texts(served: Served, **fields: Any) -> list[str]:
    reply = served.post("/v1/completions", ASKED | fields)
    assert reply.status == 200, reply.body
    return [choice["text"] for choice in reply.json["choices"]]


def streamed(served: Served) -> str:
    stream = served.client.completions.create(**ASKED, stream=True)
    return "".join(chunk.choices[0].text for chunk in stream)


def test_sglang_responses_equal_sequential_handoff(rooms: Served, disaggregated: Served) -> None:
    before = rooms.engines()["decode"][MOVED]
    assert texts(rooms) == texts(disaggregated) == [streamed(rooms)]
    assert rooms.engines()["decode"][MOVED] > before
    assert rooms.engines()["prefill"]["vllm:prompt_tokens_total"] > 0


@pytest.mark.parametrize("fields", [{"prompt": ["one", "two"]}, {"prompt": "Hi"}])
def test_sglang_executes_every_request_on_two_workers(
    rooms: Served, disaggregated: Served, fields: dict[str, Any]
) -> None:
    """This includes requests that other engines leave to the decode worker, and short ones."""
    before = rooms.engines()["decode"][MOVED]
    assert texts(rooms, **fields) == texts(disaggregated, **fields)
    assert rooms.engines()["decode"][MOVED] > before


def test_sglang_samples_are_separate_requests(rooms: Served) -> None:
    """SGLang and the simulator would never answer them as one request."""
    (alone,) = texts(rooms)
    assert texts(rooms, n=3) == [alone] * 3
    both = ASKED | {"prompt": ["one", "two"]}
    once, twice = (rooms.post("/v1/completions", both | {"n": n}).json for n in (1, 2))
    one, two = (choice["text"] for choice in once["choices"])
    choices = [(c["index"], c["text"]) for c in twice["choices"]]
    assert choices == [(0, one), (1, one), (2, two), (3, two)]
    assert twice["usage"]["prompt_tokens"] == once["usage"]["prompt_tokens"]
    assert twice["usage"]["completion_tokens"] == 2 * once["usage"]["completion_tokens"]


def test_sglang_samples_are_merged_into_one_stream(rooms: Served) -> None:
    talk: Any = [{"role": "user", "content": FABLE}]
    chat = rooms.client.chat.completions
    stream = chat.create(
        model=MODEL, messages=talk, max_tokens=9, n=2, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    alone = chat.create(model=MODEL, messages=talk, max_tokens=9)
    said = dict.fromkeys((0, 1), "")
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        said[choice.index] += choice.delta.content or ""
    assert set(said.values()) == {alone.choices[0].message.content}
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    usage = chunks[-1].usage
    assert usage
    assert alone.usage
    assert usage.prompt_tokens == alone.usage.prompt_tokens
    assert usage.completion_tokens == 2 * alone.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_client_bootstrap_fields_are_ignored(rooms: Served) -> None:
    own = {"bootstrap_host": "192.0.2.1", "bootstrap_port": 1, "bootstrap_room": 1}
    assert texts(rooms, **own) == texts(rooms)


def test_invalid_request_gets_engine_error(rooms: Served) -> None:
    reply = rooms.post("/v1/completions", ASKED | {"temperature": 9})
    assert reply.status == 400
    assert "temperature" in reply.json["error"]["message"]


def test_requests_of_lost_client_are_aborted_on_both_workers(rooms: Served) -> None:
    endless = ASKED | {"max_tokens": 4000, "stream": True}
    stream = rooms.client.completions.create(**endless, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    until_idle(rooms)


def test_response_of_lost_client_is_aborted_on_both_workers(rooms: Served) -> None:
    endless: Any = {"model": MODEL, "input": FABLE, "max_output_tokens": 4000, "stream": True}
    with rooms.client.responses.create(**endless, extra_body={"ignore_eos": True}) as stream:
        assert next(iter(stream)).response.id.startswith("resp_")
        until("both have it", lambda: rooms.busy() > 0)
    until_idle(rooms)


def until_idle(rooms: Served) -> None:
    until("the engines are idle", lambda: rooms.busy() == 0, 10)
    usage = "vllm:kv_cache_usage_perc"
    until("no block is held", lambda: not any(e[usage] for e in rooms.engines().values()), 10)


def test_prefill_worker_dies_during_prefill(tmp_path: Path, model_folder: Path) -> None:
    """The other worker answers its requests."""
    slow = ("engine.args.time-scale=30", "engine.max_restarts=0")
    more = ("topology.prefill.workers=2", f"model.path={model_folder}", "model.name=simulated")
    with serving(tmp_path, *DIALECT, *slow, *more) as served, ThreadPoolExecutor(4) as pool:
        until("both are there", lambda: len(served.workers().get("prefill", ())) == 2, 20)
        prefills = [row["url"] for row in served.workers()["prefill"]]
        bodies = [ASKED | {"prompt": f"{i} {FABLE}", "max_tokens": 2} for i in range(4)]
        asked = [pool.submit(served.post, "/v1/completions", body) for body in bodies]
        until("both compute", lambda: all(served.loads().get(url) for url in prefills), 20)
        kill(served.pid_of(prefills[0]))
        replies = [each.result(timeout=60) for each in asked]
        assert [reply.status for reply in replies] == [200] * 4, [r.body for r in replies]
        retried = served.metrics_now()["hpc_dynamo_request_retries_total"]
        assert retried > 0
        assert json.loads(replies[0].body)["choices"][0]["finish_reason"] == "length"


def test_route_before_engines_without_bootstrap_settings(tmp_path: Path) -> None:
    options = ("--pd-protocol", "sglang", "--role")
    with simulator(*options, "prefill") as prefill, simulator(*options, "decode") as decode:
        urls = ("--prefill", prefill.url, "--decode", decode.url)
        speaking = ("engine=simulator", "engine.args.pd-protocol=sglang", "model.name=demo")
        with routing(tmp_path, *urls, *speaking) as served:
            assert [row["state"] for row in rows(served)] == ["ready", "ready"]
            reply = served.post("/v1/completions", ASKED | {"model": "demo"})
            assert reply.status == 200, reply.body  # no room: 400
