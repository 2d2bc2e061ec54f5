"""Requests that are refused before they wait for a worker."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import Config, Engine
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.dispatch.reserved_fields import REFUSED_FIELDS, RESERVED_FIELDS
from hpc_dynamo.engines import CHAT, COMPLETIONS, MAX_IDS
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.preprocess import PROMPT_FIELDS, PromptTooLong, Tokens

CONTEXT = 100
TALK = {"messages": [{"role": "user", "content": "a"}]}


class FixedTokenizer:
    """Computes as many token ids as a prompt has characters."""

    async def chat(self, body: Any, max_tokens: int = 0) -> Tokens:
        return _tokens(body["messages"][0]["content"])

    async def completion(self, body: Any, max_tokens: int = 0) -> list[Tokens]:
        assert body.keys() <= PROMPT_FIELDS
        prompt = body["prompt"]
        one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [_tokens(text) for text in ([prompt] if one else prompt)]

    def limit_memory(self) -> bool:
        return False


def _tokens(text: Sequence[object]) -> Tokens:
    return Tokens(array("I", range(len(text))).tobytes())


async def refused(path: str, body: dict[str, Any], config: Config | None = None) -> RequestFailed:
    """Return the refusal of a request; fail if it is accepted."""
    with pytest.raises(RequestFailed) as refusal:
        await build(path, body, config)
    assert refusal.value.status == 400
    return refusal.value


async def build(path: str, body: dict[str, Any], config: Config | None = None) -> None:
    content = json.dumps(body).encode()
    fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    context = RequestContext(max_context_tokens=CONTEXT)
    await RequestBuilder(config or Config(), FixedTokenizer()).build(path, content, fields, context)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": "x" * (CONTEXT + 1)}, "input_tokens"),
        (COMPLETIONS, {"prompt": ["x", "x" * (CONTEXT + 1)]}, "input_tokens"),
        (COMPLETIONS, {"prompt": [1] * (CONTEXT + 9)}, "input_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 1000}]}, "input_tokens"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": CONTEXT + 1}, "max_tokens"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": "101"}, "max_tokens"),
        (CHAT, TALK | {"max_completion_tokens": 10**30}, "max_completion_tokens"),
        (CHAT, TALK | {"max_completion_tokens": None, "max_tokens": 101}, "max_tokens"),
    ],
)
async def test_request_beyond_the_context_is_refused(
    path: str, body: dict[str, Any], param: str
) -> None:
    error = json.loads((await refused(path, body)).body)["error"]
    assert "=100. Please request" in error["message"] or "length is 100 tokens" in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", param, 400)


@pytest.mark.parametrize(
    ("prompt", "size"),
    [("x" * 500, "at least 101"), ([1] * 101, "at least 101"), ([1] * 109, "109"),
     ([[1], [2] * 120], "120")],
)  # fmt: skip
async def test_length_of_a_prompt_is_given_as_by_vllm(prompt: object, size: str) -> None:
    message = (await refused(COMPLETIONS, {"prompt": prompt})).message
    assert f"your prompt contains {size} input tokens, which exceeds" in message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": "x" * CONTEXT, "max_tokens": CONTEXT}),
        (COMPLETIONS, {"prompt": "x", "max_tokens": None}),
        (CHAT, TALK | {"max_completion_tokens": 5, "max_tokens": 1000}),
        (CHAT, TALK | {"max_tokens": "many"}),
        ("/tokenize", {"prompt": "x" * 1000, "max_tokens": 1000}),
    ],
)
async def test_what_an_engine_may_accept_is_sent_to_it(path: str, body: dict[str, Any]) -> None:
    await build(path, body)


class NoTokenizer(FixedTokenizer):
    """Must not be asked."""

    async def completion(self, body: Any, max_tokens: int = 0) -> list[Tokens]:
        raise AssertionError(body)


@pytest.mark.parametrize("prompt", [b"[" + b"1," * CONTEXT + b"1]", b"[[" + b"1, " * 100 + b"1]]"])
async def test_token_ids_beyond_the_context_are_not_decoded(prompt: bytes) -> None:
    """Four million ids in a body of 8 MB stopped a frontend for 0.2 s, also on /v1/route."""
    context, fields = RequestContext(max_context_tokens=CONTEXT), {"prompt": msgspec.Raw(prompt)}
    builder = RequestBuilder(Config(), NoTokenizer())
    with pytest.raises(RequestFailed, match="contains at least 101 input tokens"):
        await builder.routing_request(COMPLETIONS, fields, context)


class LimitedTokenizer(FixedTokenizer):
    """Refuses all texts as too long."""

    async def completion(self, body: Any, max_tokens: int = 0) -> list[Tokens]:
        raise PromptTooLong(max_tokens)


@pytest.mark.parametrize("prompt", [b"[%b1]", b"[[%b1], [2]]"])
async def test_millions_of_token_ids_with_unknown_context_are_routed_by_load(prompt: bytes) -> None:
    """Decoding 32 MB of them takes a second, in which the event loop does nothing else."""
    ids = prompt % (b"1," * MAX_IDS)
    builder = RequestBuilder(Config())
    for context in (RequestContext(), RequestContext(max_context_tokens=MAX_IDS + 9)):
        fields = {"prompt": msgspec.Raw(ids)}
        found = await builder.routing_request(COMPLETIONS, fields, context)
        assert (found.prompt_tokens, found.block_hashes) == (0, b"")
    fields = {"prompt": msgspec.Raw(prompt % (b"1," * 99))}
    found = await builder.routing_request(COMPLETIONS, fields, RequestContext())
    assert found.prompt_tokens >= 100
    assert found.block_hashes


async def test_text_that_was_not_tokenized_is_beyond_the_context() -> None:
    context, fields = RequestContext(max_context_tokens=CONTEXT), {"prompt": "x", "logit_bias": {}}
    with pytest.raises(RequestFailed, match="at least 101 input tokens") as refusal:
        await RequestBuilder(Config(), LimitedTokenizer()).build(COMPLETIONS, b"", fields, context)
    assert refusal.value.status == 400


async def test_fields_without_effect_on_the_prompt_are_not_decoded() -> None:
    await build(COMPLETIONS, {"prompt": "x", "logit_bias": {"1": 1}, "stop": ["a"]})


async def test_an_engine_that_shortens_prompts_gets_them() -> None:
    engine = Engine(name="sglang", args={"allow_auto_truncate": True})
    await build(COMPLETIONS, {"prompt": "x" * 1000}, replace(Config(), engine=engine))


async def test_names_are_found_at_any_depth() -> None:
    """40,000 names at a depth of 240 in a body of 400 KB stopped a frontend for 0.3 s."""
    deep: Any = dict.fromkeys(map(str, range(40_000)), 1)
    for _ in range(120):
        deep = [{"a": deep}]
    await build("/v1/rerank", {"x": deep})
    for found in ([deep, {"lora_path": 1}], [[{"a": 1, "b": [{"lora_path": deep}]}]]):
        assert "lora_path" in (await refused("/v1/rerank", {"x": found})).message


@pytest.mark.parametrize("name", REFUSED_FIELDS)
async def test_field_that_would_change_the_response_is_refused(name: str) -> None:
    for value in ({"callable": "80049503"}, "text", 0, False, [None]):
        for path, body in ((CHAT, TALK), (COMPLETIONS, {"prompt": "x"}), ("/generate", {})):
            assert name in (await refused(path, {**body, name: value})).message
    await build(CHAT, TALK | {name: None})


async def test_request_may_not_continue_without_its_client() -> None:
    assert "background" in (await refused("/generate", {"text": "a", "background": True})).message
    await build("/generate", {"text": "a", "background": False})
    await build("/v1/responses", {"input": "a", "background": True})


@pytest.mark.parametrize("name", ["cache_salt", "extra_key", "priority", "session_id"])
async def test_field_that_affects_only_its_request_is_sent(name: str) -> None:
    assert name not in {*RESERVED_FIELDS, *REFUSED_FIELDS}
    await build(CHAT, TALK | {name: 1})
