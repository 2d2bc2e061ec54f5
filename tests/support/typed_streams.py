"""Streams of /v1/messages and /v1/responses, read as strictly as the protocols allow."""

import json
from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

Json = dict[str, Any]

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TEXT_DELTAS = ("content_block_delta", "response.output_text.delta")
FORM = {
    MESSAGES: [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ],
    RESPONSES: [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ],
}  # fmt: skip


def typed_events(content: bytes) -> list[Json]:
    """Return the events of a stream, whose names have to equal their types."""
    events = []
    for block in content.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def assert_unbroken_events(path: str, content: bytes, whole: Json) -> None:
    """Assert that a stream is one answer in the form of its protocol, with this content."""
    events = typed_events(content)
    kinds = [event["type"] for event in events]
    once = [kind for i, kind in enumerate(kinds) if kind not in TEXT_DELTAS or kind != kinds[i - 1]]
    assert [kind.replace("incomplete", "completed") for kind in once] == FORM[path]
    check = assert_message if path == MESSAGES else assert_response
    check({event["type"]: event for event in events}, events, whole)


def assert_message(by_kind: dict[str, Json], events: list[Json], whole: Json) -> None:
    start, end = by_kind["message_start"]["message"], by_kind["message_delta"]
    assert start["content"] == []
    assert {event["index"] for event in events if "index" in event} == {0}
    text = "".join(event["delta"].get("text", "") for event in events if "delta" in event)
    assert text == whole["content"][0]["text"]
    assert end["delta"]["stop_reason"] == whole["stop_reason"]
    assert end["delta"].get("stop_sequence") == whole.get("stop_sequence")
    assert end["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    # SGLang counts the input only at the start, and cached tokens in a field of their own.
    counted = end["usage"] if "input_tokens" in end["usage"] else start["usage"]
    assert _input_tokens(counted) == _input_tokens(whole["usage"])


def _input_tokens(usage: Json) -> int:
    return int(usage["input_tokens"]) + int(usage.get("cache_read_input_tokens") or 0)


def assert_response(by_kind: dict[str, Json], events: list[Json], whole: Json) -> None:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        if "response" not in event:  # that of the simulator has only some fields
            RESPONSE_EVENT.validate_python(event)
    created = by_kind["response.created"]["response"]
    last = by_kind.get("response.completed") or by_kind["response.incomplete"]
    completed = last["response"]
    assert created | {"output": 0} == by_kind["response.in_progress"]["response"] | {"output": 0}
    assert (created["id"], created["status"]) == (completed["id"], "in_progress")
    addresses = {
        (event["item_id"], event["output_index"], event["content_index"])
        for event in events
        if "item_id" in event
    }
    items = [by_kind["response.output_item.done"]["item"], *completed["output"]]
    assert {(item["id"], 0, 0) for item in items} == addresses
    assert by_kind["response.output_item.added"]["item"]["id"] == items[0]["id"]
    text = "".join(event.get("delta", "") for event in events)
    assert text == by_kind["response.output_text.done"]["text"]
    assert text == by_kind["response.content_part.done"]["part"]["text"]
    assert [item["content"][0]["text"] for item in (*items, *whole["output"])] == [text] * 3
    for name in ("status", "incomplete_details", "model"):
        assert completed[name] == whole[name], name
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert completed["usage"][name] == whole["usage"][name], name
