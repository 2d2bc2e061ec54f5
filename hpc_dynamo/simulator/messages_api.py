"""Anthropic's /v1/messages: a chat with other names. The shapes are those of vLLM 0.32
(`entrypoints/anthropic/serving.py`)."""

from typing import Any

from hpc_dynamo.http.sse import encode_typed_events
from hpc_dynamo.simulator.chat_request import ChatMessage, ChatRequest, ContentPart
from hpc_dynamo.simulator.response_formats import ResponseBuilder
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup

Json = dict[str, Any]


class MessagesRequest(ChatRequest, kw_only=True):
    """Body of /v1/messages."""

    max_tokens: int
    system: str | list[ContentPart] | None = None
    stop_sequences: list[str] | None = None

    def __post_init__(self) -> None:
        self.stop, self.n, self.logprobs = self.stop_sequences, 1, False
        self.max_completion_tokens = self.response_format = None
        if self.system:
            self.messages = [ChatMessage("system", self.system), *self.messages]


class MessageBuilder(ResponseBuilder):
    """Builds the response to a MessagesRequest: one block of text."""

    def complete(self, groups: list[SequenceGroup]) -> Json:
        sequence = groups[0].choices[0]
        content = [{"type": "text", "text": sequence.new_text()}]
        message = self._message(content, self._usage(groups)) | self._stop(sequence)
        return message | {"kv_transfer_params": groups[0].kv_transfer_params}

    def opening(self, sequences: list[OutputSequence]) -> bytes:
        self._block_begun = False
        usage = {"prompt_tokens": sequences[0].prompt_tokens, "completion_tokens": 0}
        message = self._message([], usage) | {"stop_reason": None, "stop_sequence": None}
        return encode_typed_events({"type": "message_start", "message": message})

    def chunk(self, index: int, sequence: OutputSequence) -> bytes:
        """Return the events with new text, and with the start and the end of the block."""
        text, events = sequence.new_text(), list[Json]()
        if text and not self._block_begun:
            self._block_begun = True
            block = {"type": "text", "text": ""}
            events.append({"type": "content_block_start", "index": 0, "content_block": block})
        if text:
            delta = {"type": "text_delta", "text": text}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        if sequence.finish_reason and self._block_begun:
            events.append({"type": "content_block_stop", "index": 0})
        return encode_typed_events(*events)

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        usage = _usage(self._usage(groups))
        ended = {"delta": self._stop(groups[0].choices[0]), "usage": usage}
        return encode_typed_events({"type": "message_delta", **ended}, {"type": "message_stop"})

    def _message(self, content: list[Json], usage: Json) -> Json:
        head = {"id": self._head["id"], "type": "message", "role": "assistant"}
        head["model"] = self._head["model"]
        return head | {"content": content, "usage": _usage(usage)}

    def _stop(self, sequence: OutputSequence) -> Json:
        reason = "max_tokens" if sequence.finish_reason == "length" else "end_turn"
        if sequence.stop_reason is not None:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": sequence.stop_reason}


def _usage(counts: Json) -> Json:
    return {"input_tokens": counts["prompt_tokens"], "output_tokens": counts["completion_tokens"]}
