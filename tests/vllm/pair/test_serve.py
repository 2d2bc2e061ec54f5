"""Real vLLM on the CPU behind the endpoint: what its own client gets, and what is freed."""

import json
from dataclasses import replace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from tests.support.runs import until
from tests.support.unusual_bodies import CONTEXT
from tests.support.vllm_serve import MODEL, REQUEST_S, Served, engine_pid, send

pytestmark = pytest.mark.vllm

RANK = {"X-Data-Parallel-Rank": "7"}  # a header of vLLM
ASKED: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LONG: Any = [{"role": "user", "content": "Tell a very long story about the sea and its ships."}]


def ask(served: Served, **more: Any) -> Any:
    """A chat completion from plain dictionaries, as users write them."""
    body: dict[str, Any] = {"model": MODEL, "messages": ASKED, **more}
    return served.client.chat.completions.create(**body)


def _stream_text(served: Served, **more: Any) -> tuple[str, Any]:
    text, usage = "", None
    stream = ask(served, stream=True, stream_options={"include_usage": True}, **more)
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    return text, usage


def test_whole_and_streamed_answers_and_their_usage(served: Served) -> None:
    """The prefill worker's one token is neither lost nor doubled."""
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
    whole = ask(served, **sampling)
    text, usage = _stream_text(served, **sampling)
    assert "Paris" in text
    assert whole.choices[0].message.content == text
    assert usage.completion_tokens == whole.usage.completion_tokens > 1
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 10
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_several_choices_and_logprobs(served: Served) -> None:
    answer = ask(served, n=2, max_tokens=4, logprobs=True, top_logprobs=2)
    assert len(answer.choices) == 2
    assert all(len(c.logprobs.content) == 4 for c in answer.choices)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}


def test_tool_calls_pass_through_unchanged(served: Served) -> None:
    """The answers of a model of this size are not judged."""
    asked: dict[str, Any] = {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 48}
    alone = replace(served, url=f"{served.workers()['decode']}/v1", key=served.token)
    calls = [
        ask(to, temperature=0, **asked).choices[0].message.tool_calls for to in (served, alone)
    ]
    names, arguments = zip(
        *((c.function.name, c.function.arguments) for (c,) in calls), strict=True
    )
    assert names == ("weather", "weather")
    assert arguments[0] == arguments[1]


def test_structured_output(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = ask(served, response_format=form, max_tokens=48, temperature=0)
    assert json.loads(shaped.choices[0].message.content)["a"] in (1, 2)


def test_too_long_prompt_is_rejected_before_prefill(served: Served) -> None:
    before = served.metric("prefill", "vllm:prompt_tokens_total")
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {CONTEXT} tokens"):
        served.client.completions.create(model=MODEL, prompt="word " * 3000, max_tokens=1)
    assert served.metric("prefill", "vllm:prompt_tokens_total") == before


def test_disconnected_client_frees_both_workers(served: Served) -> None:
    stream = ask(
        served, messages=LONG, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert served.metric("decode", "vllm:num_requests_running") == 1
    stream.close()
    busy = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    until(
        "engines free of a client that has gone",
        lambda: not any(served.metric(role, n) for role in ("prefill", "decode") for n in busy),
    )


def test_engines_require_token_of_run(served: Served) -> None:
    """Also where vLLM itself would not ask for one."""
    for url in served.workers().values():
        for path in ("/metrics", "/tokenize", "/v1/models", "/invocations"):
            with pytest.raises(HTTPError) as refused:
                served.get(url + path, served.key)
            refused.value.close()
            assert refused.value.code == 401


OF_ENGINES: dict[str, Any] = {
    "an empty address of KV blocks": {"kv_transfer_params": ""},
    "half an address of KV blocks": {"kv_transfer_params": {"do_remote_prefill": True}},
    "an address of KV blocks of the wrong type": {"kv_transfer_params": [1]},
    "another address": {"bootstrap_host": "x", "bootstrap_room": -1, "ec_transfer_params": "x"},
    "ranks": {"data_parallel_rank": 7, "routed_dp_rank": 7, "disagg_prefill_dp_rank": 7},
    "a session": {"session_id": "s", "rid": "r", "request_id": "r"},
}
IN_XARGS: tuple[Any, ...] = (
    {"kv_transfer_params": ""},
    {"kv_transfer_params": [1]},
    {"ec_transfer_params": "x", "a": 1},
)


def test_fields_of_engines_do_no_harm(served: Served) -> None:
    """vLLM's engine core ends at some of them if they reach it."""
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    urls = served.workers()
    before = {url: engine_pid(url) for url in urls.values()}

    def answer(**fields: Any) -> tuple[int, Any]:
        content = json.dumps(body | fields).encode()
        return send(f"{served.url}/completions", served.key, content, **RANK)

    plain = answer()[1]["choices"][0]["text"]
    for name, fields in OF_ENGINES.items():
        status, said = answer(**fields)
        assert status == 200, (name, said)
        assert {choice["text"] for choice in said["choices"]} == {plain}, name
    for refused in ({"custom_logit_processor": "x"}, {"session_params": {"id": "s"}}):
        assert answer(**refused)[0] == 400, refused
    for xargs in IN_XARGS:
        for more in ({}, {"n": 2}, {"stream": True}):
            assert answer(vllm_xargs=xargs, **more)[0] == 400, xargs
    assert {url: engine_pid(url) for url in urls.values()} == before, "no engine was restarted"


def test_responses_and_messages_pass_through(served: Served) -> None:
    answer = served.client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
    assert answer.output
    body = {"model": MODEL, "max_tokens": 8, "messages": ASKED}
    headers = {"x-api-key": served.key, "Content-Type": "application/json"}
    asked = Request(f"{served.url}/messages", json.dumps(body).encode(), headers)
    with urlopen(asked, timeout=REQUEST_S) as got:
        assert json.loads(got.read())["type"] == "message"
