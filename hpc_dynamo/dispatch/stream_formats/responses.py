"""Streams of /v1/responses (https://platform.openai.com/docs/api-reference/responses-streaming).

The conversion to a chat is what vLLM 0.32 (entrypoints/openai/responses/utils.py) and SGLang do. If
they differ, or if only one of them has a field, the stream is not continued.
"""

from typing import Any

from hpc_dynamo.dispatch.obstacles import NotContinuable, Obstacle
from hpc_dynamo.dispatch.partial_answer import PartialAnswer
from hpc_dynamo.dispatch.stream_formats.base import WITH_USAGE, plain_text, renamed
from hpc_dynamo.http.sse import encode_typed_events

Json = dict[str, Any]

# Fields that both engines read, by their names in a chat; empty: without effect on the output.
NAMES = {
    "cache_salt": "cache_salt", "frequency_penalty": "frequency_penalty", "input": "input",
    "instructions": "instructions", "max_output_tokens": "max_tokens", "max_tool_calls": "",
    "metadata": "", "min_p": "min_p", "model": "model", "parallel_tool_calls": "",
    "presence_penalty": "presence_penalty", "priority": "priority", "prompt_cache_key": "",
    "repetition_penalty": "repetition_penalty", "safety_identifier": "", "service_tier": "",
    "stop": "stop", "store": "", "stream": "", "temperature": "temperature", "top_k": "top_k",
    "top_p": "top_p", "user": "",
}  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,), "include": ([],), "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto", "none"), "tools": ([],), "top_logprobs": (0,),
    "truncation": ("disabled",),
}  # fmt: skip
ROLES = ("assistant", "system", "user")
TEXT_KINDS = ("input_text", "output_text", "text")
OPENED = ("response.output_item.added", "response.content_part.added")
ENDS = ("response.completed", "response.incomplete")


class ResponseStreamFormat:
    """See StreamFormat."""

    def chat_body(self, body: Json) -> Json:
        chat = renamed(body, NAMES, NEUTRAL)
        instructions, given = chat.pop("instructions", None), chat.pop("input")
        messages = [{"role": "system", "content": instructions}] if instructions else []
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return chat | {"messages": [*messages, *map(_message, items)]} | WITH_USAGE

    def add(self, answer: PartialAnswer, event: Json) -> None:
        """Add an event. Items that are not messages cannot be continued."""
        kind = event["type"]
        answer.sent.add(kind)
        if kind == "response.created":
            answer.head = event["response"]
        elif kind == "response.output_item.added":
            item = event["item"]
            answer.parsed = answer.parsed or ("" if item["type"] == "message" else item["type"])
            answer.item = {"item_id": item["id"], "output_index": event["output_index"]}
        elif kind == "response.content_part.added":
            answer.item["content_index"] = event["content_index"]
        elif kind == "response.output_text.delta":
            answer.text += event["delta"]
        elif kind == "response.output_text.done":
            answer.text_ended = True
        elif kind in ENDS:
            answer.finished = answer.usage_sent = True

    def repeat(self, answer: PartialAnswer, event: Json) -> Json | None:
        """Return the event with the ids of the response and of its item that the client has."""
        if event["type"] in answer.sent:
            return None
        ids = {name: answer.head[name] for name in ("id", "created_at") if name in answer.head}
        if "response" in event:
            event["response"] |= ids
        item_id = answer.item.get("item_id")
        if item_id and "item_id" in event:
            event["item_id"] = item_id
        for item in (event.get("item"), *(event.get("response") or {}).get("output", ())):
            if item and item_id:
                item["id"] = item_id
        return event

    def writer(self, answer: PartialAnswer, body: Json) -> "ResponseEventWriter":
        return ResponseEventWriter(answer)


class ResponseEventWriter:
    """See EventWriter. The answer is one output item with one part of text."""

    def __init__(self, answer: PartialAnswer) -> None:
        self._sent, self._number = set(answer.sent), answer.events
        self._head, self._text = answer.head, answer.text
        new = {"item_id": f"msg_{answer.head['id']}", "output_index": 0}
        self._address = {"content_index": 0, **(answer.item or new)}
        self._finish_reason = ""
        self._usage: Json = {}

    def write(self, choices: list[Json], usage: Json | None, chunk: Json) -> bytes:
        self._usage = usage or self._usage
        return b"".join(map(self._add, choices))

    def _add(self, choice: Json) -> bytes:
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if not choice["text"]:
            return b""
        self._text += choice["text"]
        delta = {"delta": choice["text"], "logprobs": []}
        return self._events(
            ("response.output_item.added", self._of_item(self._item("in_progress", []))),
            ("response.content_part.added", self._address | {"part": _part("")}),
            ("response.output_text.delta", self._address | delta),
        )

    def end(self) -> bytes:
        """Return the ends of the part, of the item and of the response."""
        part, done = _part(self._text), list[tuple[str, Json]]()
        item = self._item("completed", [part])
        if OPENED[0] in self._sent:
            text = self._address | {"text": self._text, "logprobs": []}
            done.append(("response.output_text.done", text))
            done.append(("response.content_part.done", self._address | {"part": part}))
            done.append(("response.output_item.done", self._of_item(item)))
        response = self._response([item] if done else [])
        if self._sent.isdisjoint(ENDS):
            done.append(("response.completed", {"response": response}))
        return self._events(*done)

    def _events(self, *events: tuple[str, Json]) -> bytes:
        """Return events that the client does not have; only those with text are repeated."""
        result = []
        for kind, fields in events:
            if kind in self._sent and kind != "response.output_text.delta":
                continue
            self._sent.add(kind)
            result.append({"type": kind, "sequence_number": self._number, **fields})
            self._number += 1
        return encode_typed_events(*result)

    def _of_item(self, item: Json) -> Json:
        return {"output_index": self._address["output_index"], "item": item}

    def _item(self, status: str, content: list[Json]) -> Json:
        item = {"id": self._address["item_id"], "type": "message", "role": "assistant"}
        return item | {"status": status, "content": content}

    def _response(self, output: list[Json]) -> Json:
        """Return the whole response. vLLM's status is incomplete only for `max_output_tokens`."""
        cut = self._finish_reason == "length"
        counts = {
            "input_tokens": self._usage.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self._usage.get("completion_tokens", 0),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._usage.get("total_tokens", 0),
        }
        ended = {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        }
        return self._head | ended | {"output": output, "usage": counts}


def _message(item: Json) -> Json:
    """Return an input item as a message. Raises NotContinuable."""
    if item.get("type", "message") != "message" or item.get("role") not in ROLES:
        raise NotContinuable(Obstacle.content, "the input is not only messages")
    if item.get("status", "completed") != "completed":
        raise NotContinuable(Obstacle.prompt, "a message of the input is incomplete")
    content = plain_text(item["content"], TEXT_KINDS)
    if item["role"] == "assistant" and not isinstance(content, str):
        raise NotContinuable(Obstacle.prompt, "an earlier answer has several parts")
    return {"role": item["role"], "content": content}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
