"""OpenAI's /v1/responses: a chat with other names. Nothing is stored. The shapes are those of
vLLM 0.32 (`entrypoints/openai/responses/streaming_events.py`)."""

from typing import Any

import msgspec

from hpc_dynamo.http.sse import encode_typed_events
from hpc_dynamo.simulator.chat_request import ChatMessage, ChatRequest, ContentPart
from hpc_dynamo.simulator.response_formats import ResponseBuilder
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup

Json = dict[str, Any]


class ResponsesRequest(ChatRequest, kw_only=True):
    """Body of /v1/responses."""

    input: str | list[ChatMessage]
    instructions: str | None = None
    max_output_tokens: int | None = None
    request_id: str | None = None  # SGLang: id of the request and of its response
    messages: list[ChatMessage] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_tokens, self.n, self.logprobs = self.max_output_tokens, 1, False
        self.rid = self.request_id
        self.max_completion_tokens = self.response_format = None
        given = [ChatMessage("user", self.input)] if isinstance(self.input, str) else self.input
        system = [ChatMessage("system", self.instructions)] if self.instructions else []
        self.messages = [*system, *map(_as_chat, given)]


class ResponseObjectBuilder(ResponseBuilder):
    """Builds the response to a ResponsesRequest: one message of text."""

    def complete(self, groups: list[SequenceGroup]) -> Json:
        sequence = groups[0].choices[0]
        items = [self._item("completed", [self._part(sequence.new_text())])]
        return self._ended(groups, items) | {"kv_transfer_params": groups[0].kv_transfer_params}

    def opening(self, sequences: list[OutputSequence]) -> bytes:
        self._number, self._text = 0, ""
        response = {"response": self._response("in_progress", [], None)}
        return self._events(("response.created", response), ("response.in_progress", response))

    def chunk(self, index: int, sequence: OutputSequence) -> bytes:
        """Return the events with new text, and with the start and the end of the item."""
        text, events = sequence.new_text(), list[tuple[str, Json]]()
        if text and not self._text:
            events.append(self._of_item("added", self._item("in_progress", [])))
            events.append(("response.content_part.added", self._address({"part": self._part("")})))
        if text:
            delta = self._address({"delta": text, "logprobs": []})
            events.append(("response.output_text.delta", delta))
        self._text += text
        if sequence.finish_reason and self._text:
            events += self._done()
        return self._events(*events)

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        items = [self._item("completed", [self._part(self._text)])] if self._text else []
        return self._events(("response.completed", {"response": self._ended(groups, items)}))

    def _done(self) -> list[tuple[str, Json]]:
        part = self._part(self._text)
        text = self._address({"text": self._text, "logprobs": []})
        return [
            ("response.output_text.done", text),
            ("response.content_part.done", self._address({"part": part})),
            self._of_item("done", self._item("completed", [part])),
        ]

    def _events(self, *events: tuple[str, Json]) -> bytes:
        start, self._number = self._number, self._number + len(events)
        return encode_typed_events(
            *(
                {"type": kind, "sequence_number": number, **fields}
                for number, (kind, fields) in enumerate(events, start)
            )
        )

    @property
    def _item_id(self) -> str:
        return f"msg_{self._head['id']}"

    def _address(self, fields: Json) -> Json:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0, **fields}

    def _of_item(self, what: str, item: Json) -> tuple[str, Json]:
        return f"response.output_item.{what}", {"output_index": 0, "item": item}

    def _part(self, text: str) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[Json]) -> Json:
        item = {"id": self._item_id, "type": "message", "role": "assistant"}
        return item | {"status": status, "content": content}

    def _ended(self, groups: list[SequenceGroup], items: list[Json]) -> Json:
        counts = self._usage(groups)
        usage = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        cut = groups[0].choices[0].finish_reason == "length"
        response = self._response("incomplete" if cut else "completed", items, usage)
        return response | {"incomplete_details": {"reason": "max_output_tokens"} if cut else None}

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        response_id = self._request.rid or f"resp_{self._head['id']}"
        head = {"id": response_id, "created_at": self._head["created"]}
        head |= {"object": "response", "model": self._head["model"], "error": None}
        return head | {
            "status": status,
            "incomplete_details": None,
            "output": output,
            "usage": usage,
        }


def _as_chat(message: ChatMessage) -> ChatMessage:
    if not isinstance(message.content, list):
        return message
    kinds = {"input_text": "text", "output_text": "text"}
    parts = [ContentPart(kinds.get(part.type, part.type), part.text) for part in message.content]
    return ChatMessage(message.role, parts)
