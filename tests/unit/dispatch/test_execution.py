"""Execution of requests by path and body, for the protocols of all engines."""

import msgspec
import pytest

from hpc_dynamo.config import Engine
from hpc_dynamo.dispatch.execution import (
    AGGREGATED,
    DISAGGREGATED,
    Execution,
    choose_execution,
    count,
    is_off,
)
from hpc_dynamo.engines import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Body, pd_protocol_of

PD_PROTOCOLS = {name: pd_protocol_of(Engine(name=name)) for name in ("vllm", "sglang", "trtllm")}
TEXT = {"prompt": "a", "max_tokens": 5}
TALK = {"messages": [{"role": "user", "content": "a"}]}

# Path, body, and execution by vLLM, SGLang and TensorRT-LLM: disaggregated, aggregated, or as a
# number of requests.
TABLE: list[tuple[str, Body, str]] = [
    (COMPLETIONS, TEXT, "d d d"),
    (COMPLETIONS, TEXT | {"prompt": ["a"]}, "d d d"),
    (COMPLETIONS, TEXT | {"prompt": [1, 2]}, "d d d"),
    (COMPLETIONS, TEXT | {"prompt": [[1, 2]]}, "d d d"),
    # Several prompts: there is no KV transfer for the second and later ones.
    (COMPLETIONS, TEXT | {"prompt": ["a", "b"]}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": ["a", "b", "c"]}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": [[1], [2]]}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": [[1], "b"]}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": ["a", "b"], "n": 3}, "w 3 w"),
    # Several samples.
    (COMPLETIONS, TEXT | {"n": 2}, "w 2 w"),
    (COMPLETIONS, TEXT | {"n": 1, "best_of": 2}, "w d w"),
    (COMPLETIONS, TEXT | {"n": None, "best_of": None}, "d d d"),
    (CHAT, TALK | {"n": 4, "stream": True}, "w 4 w"),
    (CHAT, TALK | {"n": 1}, "d d d"),
    (CHAT, TALK | {"n": "2"}, "w 2 w"),
    (CHAT, TALK | {"n": 2.0}, "w 2 w"),
    (CHAT, TALK | {"n": " 1 "}, "d d d"),
    (CHAT, TALK | {"n": True}, "d d d"),
    # Malformed counts: one engine rejects them, and nothing hangs.
    (CHAT, TALK | {"n": 0}, "w w w"),
    (CHAT, TALK | {"n": -2}, "w w w"),
    (CHAT, TALK | {"n": 1.5}, "w w w"),
    (CHAT, TALK | {"n": "two"}, "w w w"),
    (CHAT, TALK | {"n": [2]}, "w w w"),
    (CHAT, TALK | {"n": False}, "w w w"),
    # Output about the prompt, and beam search.
    (COMPLETIONS, TEXT | {"use_beam_search": True, "n": 2}, "w 2 w"),
    (COMPLETIONS, TEXT | {"use_beam_search": True}, "w d w"),
    (COMPLETIONS, TEXT | {"use_beam_search": False}, "d d d"),
    (COMPLETIONS, TEXT | {"echo": True}, "w d w"),
    (COMPLETIONS, TEXT | {"echo": "yes"}, "w d w"),
    (COMPLETIONS, TEXT | {"echo": False}, "d d d"),
    (COMPLETIONS, TEXT | {"echo": None}, "d d d"),
    (CHAT, TALK | {"echo": True}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt_logprobs": 0}, "w d w"),
    (CHAT, TALK | {"prompt_logprobs": 3}, "w d w"),
    (CHAT, TALK | {"prompt_logprobs": None}, "d d d"),
    (COMPLETIONS, {"prompt": "a", "prompt_embeds": "AAAA"}, "w d w"),
    # Malformed prompts and limits.
    (COMPLETIONS, {}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": None}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": []}, "w d w"),
    (COMPLETIONS, TEXT | {"prompt": {"a": 1}}, "w d w"),
    (COMPLETIONS, TEXT | {"max_tokens": "many"}, "w d w"),
    (COMPLETIONS, TEXT | {"max_tokens": 0}, "w d w"),
    (COMPLETIONS, TEXT | {"max_tokens": -1}, "w d w"),
    (COMPLETIONS, TEXT | {"max_tokens": "5"}, "d d d"),
    (COMPLETIONS, TEXT | {"max_tokens": None}, "d d d"),
    (CHAT, TALK | {"max_completion_tokens": 7}, "d d d"),
    # Other generation APIs.
    (MESSAGES, TALK | {"max_tokens": 5}, "d d w"),
    (RESPONSES, {"input": "a"}, "d d w"),
    (RESPONSES, {"input": "a", "tools": [{"type": "function", "name": "f"}]}, "d d w"),
    (RESPONSES, {"input": "a", "tools": [{"type": "web_search_preview"}]}, "w w w"),
    # Engines ignore `n` on these paths.
    (MESSAGES, TALK | {"max_tokens": 5, "n": 5}, "w d w"),
    (RESPONSES, {"input": "a", "n": 5}, "w d w"),
    (RESPONSES, {"input": "a", "n": "two"}, "w d w"),
    (RESPONSES, {"input": "a", "tools": "all"}, "w w w"),
    (RESPONSES, {"input": "a", "previous_response_id": "r"}, "w w w"),
    (RESPONSES, {"input": "a", "background": True}, "w w w"),
    (RESPONSES, {"input": "a", "background": False, "store": True}, "d d w"),
    # Paths that generate nothing, and unknown paths.
    ("/v1/embeddings", {"input": ["a", "b"]}, "w w w"),
    ("/pooling", {"input": "a"}, "w w w"),
    ("/v1/score", {"text_1": "a", "text_2": "b"}, "w w w"),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}, "w w w"),
    ("/v1/messages/count_tokens", TALK, "w w w"),
    ("/tokenize", {"prompt": "a"}, "w w w"),
    ("/v1/chat/completions/batch", {"messages": [[], []]}, "w w w"),
    ("/anything", TEXT, "w w w"),
]


def expected(word: str) -> Execution:
    named = {"d": DISAGGREGATED, "w": AGGREGATED}
    return named[word] if word in named else Execution(disaggregated=True, samples=int(word))


def raw(body: Body) -> Body:
    """Parse a body one level deep, as the endpoint does."""
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} {row[1]}"[:70])
@pytest.mark.parametrize("read", [dict, raw])
def test_execution_depends_on_path_and_body_only(
    row: tuple[str, Body, str], read: type[dict[str, object]]
) -> None:
    path, body, words = row
    protocols = zip(("vllm", "sglang", "trtllm"), words.split(), strict=True)
    for name, word in protocols:
        assert choose_execution(path, read(body), PD_PROTOCOLS[name]) == expected(word), name


@pytest.mark.parametrize("prompt", [b"[1, 2]", b" [\n 1,2]", b"[[1,2]]", b'["a"]', b'"a, b"'])
def test_one_prompt_is_disaggregated_in_any_notation(prompt: bytes) -> None:
    body = {"prompt": msgspec.Raw(prompt)}
    assert choose_execution(COMPLETIONS, body, PD_PROTOCOLS["vllm"]) == DISAGGREGATED


@pytest.mark.parametrize("prompt", [b'[\n"a", "b"]', b" [ [1], [2]]", b"[", b"", b"nul", b"[[[["])
def test_zero_or_several_prompts_are_aggregated(prompt: bytes) -> None:
    body = {"prompt": msgspec.Raw(prompt)}
    assert choose_execution(COMPLETIONS, body, PD_PROTOCOLS["vllm"]) == AGGREGATED


@pytest.mark.parametrize(
    ("tokens", "limit", "fits"), [(99, 100, True), (100, 1, False), (1, 101, False), (0, 100, True)]
)
def test_prompt_beyond_context_is_aggregated(tokens: int, limit: int, fits: bool) -> None:
    body, context = {"prompt": "a", "max_tokens": limit}, {"tokens": tokens, "context_tokens": 100}
    for name in ("vllm", "trtllm"):
        found = choose_execution(COMPLETIONS, body, PD_PROTOCOLS[name], **context)
        assert found == (DISAGGREGATED if fits else AGGREGATED)
    # SGLang's workers reject requests for one worker.
    assert choose_execution(COMPLETIONS, body, PD_PROTOCOLS["sglang"], **context) == DISAGGREGATED


@pytest.mark.parametrize("value", [b"[" + b"1," * 9000 + b"1]", b'"' + b"0" * 20_000 + b'"'])
def test_long_value_of_a_short_field_is_not_read(value: bytes) -> None:
    """A body of 32 MB with a long array in `stream` was decoded again for each look at it."""
    body = {"stream": msgspec.Raw(value), "n": msgspec.Raw(value)}
    assert not is_off(body, "stream")
    assert count(body, "n") < 0
