"""Responses as seen by the official client: complete, streamed, structured, embeddings."""

import base64
import json
import math
from collections.abc import AsyncIterable
from struct import unpack
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, ConfigDict

from tests.support.simulator import MODEL, Client, Rank

SAID: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {}}}
EXAMPLE: Any = {"steps": [1, 2], "title": "A tour"}


class Plan(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})
    title: str
    steps: list[int]


class Empty(BaseModel):
    pass


def schema_of(model: type[BaseModel]) -> Any:
    schema = {"name": "x", "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


async def joined(stream: AsyncIterable[ChatCompletionChunk]) -> tuple[str, str, list[Any]]:
    """Return text, finish reason and all chunks of a stream of one choice."""
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    return text, choices[-1].finish_reason or "", chunks


async def test_stream_equals_complete_response(ai: openai.AsyncOpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": SAID, "max_completion_tokens": 30, "seed": 3}
    extra = {"ignore_eos": True, "no_such_field": [1]}
    whole = await ai.chat.completions.create(**fields, user="me", extra_body=extra)
    options: Any = {"include_usage": True}
    stream = await ai.chat.completions.create(
        **fields, stream=True, stream_options=options, extra_body=extra
    )
    text, finish, chunks = await joined(stream)
    assert (text, finish) == (whole.choices[0].message.content, "length")
    assert len(text.split()) == 30
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_usage_in_each_chunk(ai: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await ai.chat.completions.create(
        model=MODEL, messages=SAID, max_tokens=4, stream=True, stream_options=options,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]
    assert counts == [0, 1, 2, 3, 4, 4]


async def test_chat_logprobs(ai: openai.AsyncOpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": SAID, "max_tokens": 9, "logprobs": True}
    whole = await ai.chat.completions.create(**fields, top_logprobs=3)
    [choice] = whole.choices
    assert choice.logprobs
    rows = choice.logprobs.content or []
    assert "".join(row.token for row in rows) == choice.message.content
    for row in rows:
        assert bytes(row.bytes or []).decode() == row.token
        best, *others = row.top_logprobs
        assert (best.token, best.logprob) == (row.token, row.logprob)
        values = [best.logprob, *(other.logprob for other in others)]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
        assert sum(map(math.exp, values)) < 1
    stream = await ai.chat.completions.create(**fields, top_logprobs=3, stream=True)
    chunks = [c.choices[0].logprobs async for c in stream if c.choices]
    assert [row for part in chunks if part for row in part.content or []] == rows
    alone = await ai.chat.completions.create(**fields)
    assert alone.choices[0].logprobs
    assert (alone.choices[0].logprobs.content or [])[0].top_logprobs == []


async def test_tools_are_part_of_prompt_and_not_called(ai: openai.AsyncOpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": SAID, "max_tokens": 5}
    plain = await ai.chat.completions.create(**ask)
    offered = await ai.chat.completions.create(**ask, tools=[TOOL], tool_choice="auto")
    assert offered.choices[0].message.content
    assert not offered.choices[0].message.tool_calls
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens


async def test_structured_output_is_first_example_of_schema(ai: openai.AsyncOpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": SAID}
    answer = await ai.chat.completions.parse(**ask, response_format=Plan)
    assert answer.choices[0].message.parsed == Plan.model_validate(EXAMPLE)
    assert answer.choices[0].finish_reason == "stop"
    cut = await ai.chat.completions.create(
        **ask, max_tokens=2, extra_body={"ignore_eos": True}, response_format=schema_of(Plan)
    )
    text = cut.choices[0].message.content or ""
    assert json.dumps(EXAMPLE, separators=(",", ":")).startswith(text)
    assert (cut.choices[0].finish_reason, len(text)) == ("length", 8)
    any_json = await ai.chat.completions.create(**ask, response_format={"type": "json_object"})
    assert json.loads(any_json.choices[0].message.content or "") == {}


async def test_embeddings(ai: openai.AsyncOpenAI, client: Client, aggregated: Rank) -> None:
    made = await ai.embeddings.create(model=MODEL, input=["one", "two", "one"])
    one, two, again = (row.embedding for row in made.data)
    assert one == again != two
    assert math.isclose(sum(v * v for v in one), 1, rel_tol=1e-5)
    assert made.usage.prompt_tokens == 3
    _, ids = await client.post(aggregated, "/tokenize", {"prompt": "one"})
    by_id = await ai.embeddings.create(
        model=MODEL, input=ids["tokens"], encoding_format="float", dimensions=8
    )
    [row] = by_id.data
    assert len(row.embedding) == 8
    ratio = row.embedding[0] / one[0]
    assert all(math.isclose(a, b * ratio, rel_tol=1e-4) for a, b in zip(row.embedding, one))  # noqa: B905 - the first 8 of many
    body = {"input": "one", "encoding_format": "base64"}
    _, raw = await client.post(aggregated, "/v1/embeddings", body)
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert list(unpack(f"<{len(one)}f", packed)) == pytest.approx(one)


async def test_limits_and_content_are_checked(ai: openai.AsyncOpenAI) -> None:
    long: Any = {"model": MODEL, "messages": SAID, "max_completion_tokens": 9000}
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens=9000 cannot be"):
        await ai.chat.completions.create(**long)
    picture: Any = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(openai.BadRequestError, match="reads only text, not image_url"):
        await ai.chat.completions.create(model=MODEL, messages=[picture])


async def test_features_that_are_missing_are_ignored(ai: openai.AsyncOpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": SAID, "max_tokens": 5}
    plain = await ai.chat.completions.create(**ask)
    more = {"structured_outputs": {"regex": "a*"}, "tool_choice": "required", "echo": True}
    same = await ai.chat.completions.create(**ask, extra_body=more)
    assert same.choices == plain.choices
    empty = await ai.chat.completions.create(**ask, response_format=schema_of(Empty))
    assert empty.choices[0].message.content == "{}"


async def test_unknown_model_and_dimensions_are_rejected(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await ai.embeddings.create(model="other", input="x")
    with pytest.raises(openai.BadRequestError, match="dimensions must be between"):
        await ai.embeddings.create(model=MODEL, input="x", dimensions=0)
