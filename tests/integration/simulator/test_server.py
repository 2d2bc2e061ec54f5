"""The HTTP endpoints of one rank, over real sockets."""

import json
from typing import Any

import aiohttp
import pytest

from hpc_dynamo.engines.metrics import parse_metrics
from hpc_dynamo.engines.vllm.adapter import VLLM_METRICS
from tests.support.simulator import MODEL, Body, Client, Rank

SAID = [{"role": "user", "content": "What is the capital of France?"}]


async def events(client: Client, rank: Rank, path: str, body: Body) -> list[Any]:
    """Return the records of a stream. Checks its end."""
    body = {**body, "stream": True}
    async with client.session.post(rank.url + path, json=body) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = (await answer.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_completion_response(client: Client, aggregated: Rank) -> None:
    answer = await client.complete(aggregated, "Once upon a time", max_tokens=12, ignore_eos=True)
    assert answer["object"] == "text_completion"
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["text"].split()) == 12
    usage = answer["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


async def test_token_ids_and_text_give_same_output(client: Client, aggregated: Rank) -> None:
    _, tokens = await client.post(aggregated, "/tokenize", {"prompt": "the same"})
    texts = {await client.text(aggregated, p) for p in ("the same", tokens["tokens"])}
    assert len(texts) == 1
    answer = await client.complete(aggregated, [tokens["tokens"], [1, 2, 3]])
    assert answer["choices"][0]["text"] in texts
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


async def test_chat_stream_equals_complete_response(client: Client, aggregated: Rank) -> None:
    path, body = "/v1/chat/completions", {"messages": SAID, "max_tokens": 30, "n": 2}
    status, whole = await client.post(aggregated, path, body)
    assert status == 200
    body["stream_options"] = {"include_usage": True}
    *chunks, last = await events(client, aggregated, path, body)
    texts, ends = ["", ""], ["", ""]
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ends[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert last["choices"] == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_stop_string_cuts_text(client: Client, aggregated: Rank, streamed: bool) -> None:
    text = await client.text(aggregated, "stop", max_tokens=40, ignore_eos=True)
    words = text.split()
    stop = f"{words[9]} {words[10]}"
    body = {"prompt": "stop", "max_tokens": 40, "ignore_eos": True, "stop": ["zzz", stop]}
    if streamed:
        choices = [
            e["choices"][0] for e in await events(client, aggregated, "/v1/completions", body)
        ]
    else:
        choices = (await client.post(aggregated, "/v1/completions", body))[1]["choices"]
    assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)


async def test_output_ends_by_itself_unless_eos_is_ignored(
    client: Client, aggregated: Rank
) -> None:
    async def length(**fields: Any) -> int:
        answer = await client.complete(aggregated, "by itself", max_tokens=2000, **fields)
        return int(answer["usage"]["completion_tokens"])

    alone = await length()
    assert alone < 2000
    assert await length(ignore_eos=True) == 2000


async def test_prefix_hits_are_counted(client: Client, aggregated: Rank) -> None:
    long = "The same system prompt before every question. " * 30
    first = await client.complete(aggregated, f"{long} Why?")
    hits = await client.metric(aggregated, "prefix_cache_hits_total")
    second = await client.complete(aggregated, f"{long} How?")
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0.8 * second["usage"]["prompt_tokens"] < cached < second["usage"]["prompt_tokens"]
    assert cached % 16 == 0
    assert await client.metric(aggregated, "prefix_cache_hits_total") - hits == cached


async def test_conversation_hits_cache_of_its_own_output(client: Client, aggregated: Rank) -> None:
    path, body = "/v1/chat/completions", {"messages": SAID, "max_tokens": 200, "ignore_eos": True}
    _, first = await client.post(aggregated, path, body)
    talk = [*SAID, first["choices"][0]["message"], {"role": "user", "content": "Are you sure?"}]
    _, second = await client.post(aggregated, path, {**body, "messages": talk})
    before = first["usage"]["total_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= before - 16


BAD: list[tuple[Body, int, str]] = [
    ({"prompt": "x", "model": "other"}, 404, "The model `other` does not exist"),
    ({"prompt": 5}, 400, "$.prompt"),
    ({}, 400, "prompt"),
    ({"prompt": ""}, 400, "must be provided and non-empty"),
    ({"prompt": []}, 400, "cannot be empty"),
    ({"prompt": ["x", 3]}, 400, "prompt is a text"),
    ({"prompt": [-1]}, 400, "Token id -1 is out of vocabulary"),
    ({"prompt": "x", "max_tokens": "many"}, 400, "$.max_tokens"),
    ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens must be at least 1, got 0."),
    ({"prompt": "x", "max_tokens": 8193}, 400, "max_tokens=8193 cannot be greater than max_model"),
    ({"prompt": "a b " * 4100}, 400, "contains at least 8193 input tokens, which exceeds this"),
    ({"prompt": [7] * 9000}, 400, "contains 9000 input tokens, which exceeds this limit even"),
    ({"prompt": [7] * 8192}, 400, "max_tokens must be at least 1, got 0."),
    ({"prompt": "word " * 9000}, 400, "contains 45000 characters (more than 32768 characters"),
    ({"prompt": "x", "stop": [""]}, 400, "empty string"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD)
async def test_invalid_request_is_rejected_in_openai_form(
    client: Client, aggregated: Rank, body: Body, status: int, message: str
) -> None:
    got, answer = await client.post(aggregated, "/v1/completions", body)
    assert (got, answer["error"]["code"]) == (status, status)
    assert message in answer["error"]["message"]


async def test_malformed_json_and_unknown_path_are_errors(client: Client, aggregated: Rank) -> None:
    url = f"{aggregated.url}/v1/chat/completions"
    async with client.session.post(url, data=b'{"messages": [') as answer:
        assert (answer.status, "error" in await answer.json()) == (400, True)
    async with client.session.get(url) as answer:
        assert (answer.status, "error" in await answer.json()) == (405, True)
    for path in ("/v1/rerank", "/v1/messages/count_tokens"):
        status, body = await client.post(aggregated, path, {})
        assert (status, body["error"]["type"]) == (404, "NotFoundError")


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "\xe9"}]
)
async def test_requests_without_key_are_rejected(aggregated: Rank, header: dict[str, str]) -> None:
    async with aiohttp.ClientSession(headers=header) as session:
        for path in ("/v1/models", "/metrics", "/nixl/agent", "/v1/nothing"):
            async with session.get(aggregated.url + path) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (401, 401)
        async with session.get(f"{aggregated.url}/health") as answer:
            assert answer.status == 200


async def test_output_is_limited_by_context_length(client: Client, aggregated: Rank) -> None:
    fields = {"max_tokens": 8192, "ignore_eos": True}
    answer = await client.complete(aggregated, [7] * 8180, **fields)
    assert answer["usage"]["completion_tokens"] == 12


async def test_prefix_hits_and_request_ids_are_optional(client: Client, start: Any) -> None:
    answer = await client.complete(start(), "x")
    assert answer["usage"]["prompt_tokens_details"] is None
    rank = start("--enable-request-id-headers")
    for path, status in (("/v1/models", 200), ("/v1/nothing", 404)):
        headers = {"X-Request-Id": "mine"}
        async with client.session.get(rank.url + path, headers=headers) as response:
            assert (response.status, response.headers["X-Request-Id"]) == (status, "mine")
    body = {"prompt": "x"}
    async with client.session.post(f"{rank.url}/v1/completions", json=body) as response:
        assert (await response.json())["id"] == f"cmpl-{response.headers['X-Request-Id']}"


async def test_detokenize_returns_tokenized_text(client: Client, aggregated: Rank) -> None:
    _, tokens = await client.post(aggregated, "/tokenize", {"prompt": "Straße nach Zürich"})
    assert tokens["count"] == len(tokens["tokens"])
    _, text = await client.post(aggregated, "/detokenize", {"tokens": tokens["tokens"]})
    assert text == {"prompt": "Straße nach Zürich"}


async def test_metrics_parse_as_vllm_metrics(client: Client, start: Any) -> None:
    rank = start()
    await client.complete(rank, "one two three", max_tokens=5, ignore_eos=True)
    async with client.session.get(f"{rank.url}/metrics") as answer:
        metrics = parse_metrics(await answer.text(), VLLM_METRICS)
    assert (metrics.generation_tokens, metrics.ttft.count, metrics.itl.count) == (5, 1, 4)
    assert (metrics.prompt_tokens, metrics.running, metrics.kv_bytes) == (4, 0, 0)
    async with client.session.get(f"{rank.url}/v1/models") as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == [MODEL]
