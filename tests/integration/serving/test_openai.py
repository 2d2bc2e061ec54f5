"""The official client with both topologies: engine features pass through unchanged."""

import base64
import struct
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.integration.serving.served import MODEL, Served

STORY = "Once upon a time there was a fox who lived under the old oak near the river. " * 4


class Place(BaseModel):
    """The simulator answers with the first example of a schema."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "Rome", "people": 3, "near": ["Ostia"]}]}
    )
    name: str
    people: int
    near: list[str]


def test_completion_whole_and_streamed(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": STORY, "max_tokens": 20}
    whole = served.client.completions.create(**ask)
    chunks = list(
        served.client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert whole.usage
    assert chunks[-1].usage
    for usage in (whole.usage, chunks[-1].usage):
        count = served.post("/tokenize", {"prompt": STORY}).json["count"]
        assert (usage.prompt_tokens, usage.completion_tokens) == (count, 20)
        assert usage.total_tokens == count + 20
    assert len(whole.choices[0].text.split()) == 20, "each word of the simulator is a token"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_chat_whole_and_streamed(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": STORY}]}
    whole = served.client.chat.completions.create(**ask, max_tokens=9)
    chunks = list(
        served.client.chat.completions.create(
            **ask, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
    )
    text = whole.choices[0].message.content or ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert whole.usage
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 9
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 80
    assert len(text.split()) == 9


@pytest.mark.parametrize("length", [1, 2, 33])
def test_token_of_prefill_is_returned_once(
    aggregated: Served, disaggregated: Served, length: int
) -> None:
    said = set()
    for served in (aggregated, disaggregated):
        for _ in range(2):  # the second request hits the prefix cache
            answer = served.client.completions.create(
                model=MODEL, prompt=STORY, max_tokens=length, extra_body={"ignore_eos": True}
            )
            assert answer.usage
            assert answer.usage.completion_tokens == length
            said.add(answer.choices[0].text)
    assert len(said) == 1
    assert len(said.pop().split()) == length


def test_both_workers_execute_requests(disaggregated: Served) -> None:
    before = disaggregated.engines()
    answer = disaggregated.client.completions.create(
        model=MODEL, prompt=f"a new story: {STORY}", max_tokens=7
    )
    after = disaggregated.engines()
    assert answer.usage
    made, computed = "vllm:generation_tokens_total", "vllm:prompt_tokens_total"
    assert after["prefill"][made] - before["prefill"][made] == 1
    assert after["decode"][made] - before["decode"][made] in (6, 7)
    prompt = after["prefill"][computed] - before["prefill"][computed]
    assert prompt == answer.usage.prompt_tokens


async def test_asynchronous_client(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    async with served.asynchronous() as client:
        whole = await client.chat.completions.create(**ask, max_tokens=5)
        stream = await client.chat.completions.create(**ask, max_tokens=5, stream=True)
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        text = await client.completions.create(model=MODEL, prompt="hello", max_tokens=3)
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(text.choices[0].text.split()) == 3


def test_several_samples(served: Served) -> None:
    chat = served.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], n=2, max_tokens=4
    )
    assert [c.index for c in chat.choices] == [0, 1]
    assert all(len((c.message.content or "").split()) == 4 for c in chat.choices)
    assert chat.usage
    assert chat.usage.completion_tokens == 8
    text = served.client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=2)
    assert len(text.choices) == 2


def test_logprobs_are_returned(served: Served) -> None:
    chat = served.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}],
        logprobs=True, top_logprobs=2, max_tokens=4,
    )  # fmt: skip
    assert chat.choices[0].logprobs
    rows = chat.choices[0].logprobs.content or []
    assert "".join(row.token for row in rows) == chat.choices[0].message.content
    assert all(len(row.top_logprobs) == 2 and row.logprob < 0 for row in rows)


def test_structured_output_is_valid(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "a place"}]}
    schema: Any = {"name": "place", "schema": Place.model_json_schema()}
    plain = served.client.chat.completions.create(
        **ask, response_format={"type": "json_schema", "json_schema": schema}
    )
    Place.model_validate_json(plain.choices[0].message.content or "")
    parsed = served.client.chat.completions.parse(**ask, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)


def test_embeddings_are_returned(aggregated: Served) -> None:
    many = aggregated.client.embeddings.create(model=MODEL, input=["a", "b", "a"])
    a, b, again = (row.embedding for row in many.data)
    assert a == again != b
    assert many.usage.prompt_tokens == 3
    raw = aggregated.post("/v1/embeddings", {"input": "a", "encoding_format": "base64"})
    packed = base64.b64decode(raw.json["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(a)}f", packed)) == pytest.approx(a)


def test_models_are_listed(served: Served) -> None:
    (listed,) = served.client.models.list().data
    assert listed.id == MODEL
    assert served.client.models.retrieve(MODEL) == listed
    with pytest.raises(openai.NotFoundError, match=f"'nothing' is not served; known: {MODEL}"):
        served.client.models.retrieve("nothing")


def test_tokenize_and_detokenize(served: Served) -> None:
    tokens = served.post("/tokenize", {"model": MODEL, "prompt": "hello fox"}).json["tokens"]
    assert served.post("/detokenize", {"model": MODEL, "tokens": tokens}).json == {
        "prompt": "hello fox"
    }


def test_unknown_fields_reach_engine(served: Served) -> None:
    """Fields of the engine and unknown fields are forwarded."""
    answer = served.client.completions.create(
        model=MODEL, prompt="hello", max_tokens=40,
        extra_body={"ignore_eos": True, "of_tomorrow": {"deep": [1, None]}},
        extra_headers={"X-Of-Tomorrow": "1"}, extra_query={"api-version": "1"},
    )  # fmt: skip
    assert answer.usage
    assert answer.usage.completion_tokens == 40


def test_client_raises_its_own_error_classes(served: Served) -> None:
    ask: dict[str, Any] = {"prompt": "hello", "max_tokens": 1}
    with pytest.raises(openai.NotFoundError, match=f"known: {MODEL}") as missing:
        served.client.completions.create(model="other", **ask)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong") as wrong:
        served.client.with_options(api_key="guess").completions.create(model=MODEL, **ask)
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError, match="stop cannot contain an empty string"):
        served.client.completions.create(model=MODEL, **ask, stop="")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        served.client.completions.create(model=MODEL, **ask, temperature=-1, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_long_prompt_is_rejected_by_decode_worker(disaggregated: Served, stream: bool) -> None:
    before = disaggregated.engines()["prefill"]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192") as refused:
        disaggregated.client.completions.create(
            model=MODEL, prompt="word " * 9000, max_tokens=5, stream=stream
        )
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["type"] == "BadRequestError", "the engine's own"
    assert disaggregated.engines()["prefill"] == before


def test_request_ids_are_returned(served: Served) -> None:
    key = f"Bearer {served.key}"
    headers = {"Authorization": key, "X-Request-Id": "my-own-17"}
    fine = served.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, headers)
    assert (fine.status, fine.headers["x-request-id"]) == (200, "my-own-17")
    assert "my-own-17" in fine.json["id"], "the engine knows it, too"
    headers["X-Request-Id"] = "my-own-18"
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.completions.create(
            model=MODEL, prompt="a", stop="", extra_headers={"X-Request-Id": "my-own-18"}
        )
    assert refused.value.request_id == "my-own-18"
    log = served.attempt.frontend_log(0).read_text()
    assert any("my-own-18" in line and "400" in line for line in log.splitlines()), log
    for unfit in ("two words", "x" * 300, "ü"):
        headers["X-Request-Id"] = unfit
        assert served.ask("GET", "/v1/models", headers=headers).headers["x-request-id"] != unfit
