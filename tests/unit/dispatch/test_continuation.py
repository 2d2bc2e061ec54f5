"""The parts of stream migration, without engines."""

import json
from random import Random
from typing import Any

import pytest

from hpc_dynamo.dispatch.chunk_converter import ChunkConverter
from hpc_dynamo.dispatch.continuation import (
    MAX_STOP_CHARS,
    ContinuationDiffers,
    Cut,
    check_continuable,
    continuation_body,
    cut_at,
)
from hpc_dynamo.dispatch.obstacles import NotContinuable
from hpc_dynamo.dispatch.partial_answer import PartialAnswer, read_answer
from hpc_dynamo.dispatch.stream_formats import STREAM_FORMATS
from hpc_dynamo.dispatch.stream_record import PACKED_BYTES, PLAIN_BYTES, StreamRecord

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GREEDY = {"temperature": 0}


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("", None, ""),
        ("one", None, ""),
        ("one two", None, "one"),
        ("one two ", None, "one two"),
        ("one\n\n\n", None, "one"),
        ("one two three", ["reef"], "one two"),
        ("one two", "a long stop string", ""),
        ("x" * 100, None, "x" * 100),
        ("one " + "x" * 100, None, "one " + "x" * 100),
    ],
)
def test_greedy_output_repeats_its_last_word(text: str, stop: Any, kept: str) -> None:
    cut = cut_at(GREEDY | {"stop": stop}, PartialAnswer(text=text), repeat=True)
    assert (cut.kept, cut.kept + cut.repeated) == (kept, text)


def test_sampled_output_repeats_nothing() -> None:
    for body in ({}, {"temperature": 0.7}, {"stop": "xyz"}):
        assert cut_at(body, PartialAnswer(text="one tw"), repeat=True) == Cut("one tw")
    assert cut_at(GREEDY, PartialAnswer(text="one tw"), repeat=False) == Cut("one tw")
    assert cut_at(GREEDY, PartialAnswer(text="one tw", logprobs=2), repeat=True) == Cut("one tw")
    with pytest.raises(NotContinuable, match="stop string"):
        cut_at({"stop": "two"}, PartialAnswer(text="one tw"), repeat=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2}, {"seed": 1}, {"seed": 1, "temperature": 0.1}, {"echo": True}, {"suffix": "x"},
        {"presence_penalty": 0.1}, {"frequency_penalty": -1}, {"guided_json": {}}, {"tools": [{}]},
        {"structured_outputs": {"regex": "a"}}, {"stop": "x", "logprobs": 1}, {"vllm_xargs": {}},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {"any": 0},
    ],
)  # fmt: skip
def test_fields_that_prevent_continuation(fields: dict[str, Any]) -> None:
    with pytest.raises(NotContinuable):
        check_continuable(fields)


def test_fields_without_effect_do_not_prevent_continuation() -> None:
    check_continuable(
        {
            "n": 1, "seed": None, "echo": False, "presence_penalty": 0.0, "tools": [], "any": None,
            "response_format": {"type": "text"}, "tool_choice": "auto", "logprobs": False,
            "stop": "x", "messages": [{"role": "user", "content": [{"type": "text"}]}, {}],
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (CHAT, {"max_tokens": 10}, 7),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 10}, 7),
        (CHAT, {}, 95),
        (COMPLETIONS, {}, 13),
        (COMPLETIONS, {"max_tokens": 3}, 0),
        (COMPLETIONS, {"max_tokens": None}, 95),
    ],
)
def test_remaining_tokens(path: str, fields: dict[str, Any], expected: int) -> None:
    asked = fields | {"min_tokens": 4} | ({"prompt": "x"} if path == COMPLETIONS else {})
    body = continuation_body(asked, [1, 2], [3, 4, 5], 100)
    assert (body["max_tokens"], body["min_tokens"]) == (expected, 1)
    assert body["prompt"] == [1, 2, 3, 4, 5]
    unknown = continuation_body({}, [1], [2], 0)
    assert unknown["max_tokens"] is None


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def converter(repeated: str) -> ChunkConverter:
    answer = PartialAnswer(head={"id": "a"}, text="one two", role_sent=True)
    writer = STREAM_FORMATS[CHAT].writer(answer, {})
    return ChunkConverter(answer, Cut("one", repeated), writer, prompt_tokens=3, output_tokens=1)


def test_repeated_text_is_dropped() -> None:
    made = converter(" two")
    assert made.feed(event(id="b", choices=[{"text": " tw", "finish_reason": None}])) == b""
    events = made.feed(event(id="b", choices=[{"text": "o three", "finish_reason": None}]))
    chunk = json.loads(events.removeprefix(b"data: "))
    assert chunk["id"] == "a"
    assert chunk["choices"][0]["delta"] == {"content": " three"}


def test_other_text_is_an_error() -> None:
    with pytest.raises(ContinuationDiffers):
        converter(" two").feed(event(choices=[{"text": " to", "finish_reason": None}]))
    with pytest.raises(ContinuationDiffers):
        converter(" two").feed(event(choices=[{"text": " tw", "finish_reason": "stop"}]))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "tool_calls", "refusal"])
def test_parsed_output_is_not_continued(name: str) -> None:
    sent = event(choices=[{"index": 0, "delta": {"role": "assistant", name: "x"}}])
    with pytest.raises(NotContinuable, match=name):
        cut_at({}, read_answer(sent, STREAM_FORMATS[CHAT].add), repeat=True)


def test_record_keeps_long_streams_compressed() -> None:
    record, chunk = StreamRecord(), event(choices=[{"text": " word"}])
    count = 20 * PLAIN_BYTES // len(chunk)
    for _ in range(count):
        record.append(chunk)
    assert record.content() == chunk * count


def test_record_of_too_long_stream_is_dropped() -> None:
    record = StreamRecord()
    generator = Random(0)
    for _ in range(3 * PACKED_BYTES // PLAIN_BYTES):
        record.append(generator.randbytes(PLAIN_BYTES))
    assert record.content() is None


def test_long_stop_strings_are_not_compared() -> None:
    """A stop string of 1 MB would have stopped a frontend for minutes when its worker died."""
    for stop in ("x" * (MAX_STOP_CHARS + 1), ["x" * 100] * 101):
        with pytest.raises(NotContinuable, match="are long"):
            cut_at({"stop": stop}, PartialAnswer(text="xx"), repeat=True)
    assert cut_at({"stop": "y" * MAX_STOP_CHARS}, PartialAnswer(text="xx"), repeat=True)


def test_numbers_are_read_as_engines_read_them() -> None:
    fields = {"prompt": "x", "max_tokens": "30.0", "min_tokens": "20"}
    continued = continuation_body(fields, [1], [2] * 4, 0)
    assert (continued["max_tokens"], continued["min_tokens"]) == (26, 16)
