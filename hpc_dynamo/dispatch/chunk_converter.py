"""Converts the events of a continuation into those of the stream that it continues."""

from typing import Any

import msgspec

from hpc_dynamo.dispatch.continuation import ContinuationDiffers, Cut
from hpc_dynamo.dispatch.partial_answer import PartialAnswer
from hpc_dynamo.dispatch.stream_formats import EventWriter, StreamFormat
from hpc_dynamo.http.sse import (
    DONE,
    EventParser,
    ServerSentEvent,
    encode_event,
    encode_typed_events,
)

Json = dict[str, Any]


class ChunkConverter:
    """Converts one continuation, which is a stream of /v1/completions.

    `prompt_tokens` is the length of the client's prompt, and `output_tokens` that of the output
    before the continuation.
    """

    def __init__(
        self, answer: PartialAnswer, cut: Cut, writer: EventWriter, *,
        prompt_tokens: int, output_tokens: int,
    ) -> None:  # fmt: skip
        self._answer, self._writer, self._repeated = answer, writer, cut.repeated
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        self._parser = EventParser()

    def feed(self, piece: bytes) -> bytes:
        """Return the events for the client.

        Raises ContinuationDiffers, and what `read_answer` raises for an event that is no chunk.
        """
        return b"".join(map(self._convert, self._parser.feed(piece)))

    def closing(self, *, finish: str, usage: bool) -> bytes:
        """Return the end of a stream of which all tokens were sent.

        `finish` is the reason, empty if the client has it.
        """
        ended = {"index": 0, "text": "", "finish_reason": finish, "logprobs": None}
        events = [self._writer.write([ended], None, {})] if finish else []
        if usage:
            sent = self._answer.usage or {}
            counts = sent if "completion_tokens" in sent else self._usage({"completion_tokens": 0})
            events.append(self._writer.write([], counts, {}))
        return b"".join([*events, self._writer.end()])

    def _convert(self, event: ServerSentEvent) -> bytes:
        if event.data == DONE:
            return self._writer.end()
        chunk = _chunk(event)
        if chunk is None:
            return event.raw
        usage = self._usage(chunk["usage"]) if chunk.get("usage") else None
        if self._answer.finished:  # only the usage is missing
            return self._writer.write([], usage, chunk)
        choices = chunk.get("choices") or ()
        new = [choice for choice in map(self._new, choices) if choice]
        if choices and not new:
            return b""
        return self._writer.write(new, usage, chunk)

    def _new(self, choice: Json) -> Json:
        """Return what the client does not have of a choice, empty if it has everything."""
        text = self._new_text(choice.get("text") or "")
        if choice.get("finish_reason") and self._repeated:
            raise ContinuationDiffers("it ends before the text that was already sent")
        if text and self._answer.text_ended:
            raise ContinuationDiffers("it continues after the end of the text that was sent")
        if not (text or choice.get("finish_reason") or choice.get("logprobs")):
            return {}
        for name in ("prompt_logprobs", "prompt_token_ids", "prompt_text"):
            choice.pop(name, None)
        choice.setdefault("index", 0)
        return choice | {"text": text}

    def _new_text(self, text: str) -> str:
        """Return the part of the text that the client does not have."""
        size = min(len(text), len(self._repeated))
        if text[:size] != self._repeated[:size]:
            raise ContinuationDiffers("it differs from the text that was already sent")
        self._repeated = self._repeated[size:]
        return text[size:]

    def _usage(self, usage: Json) -> Json:
        output = self._output_tokens + usage.get("completion_tokens", 0)
        counts = {"prompt_tokens": self._prompt_tokens, "completion_tokens": output}
        details = usage.get("prompt_tokens_details") or {}
        if cached := details.get("cached_tokens"):
            details["cached_tokens"] = min(cached, self._prompt_tokens)
        return usage | counts | {"total_tokens": self._prompt_tokens + output}


class RepeatedEvents:
    """Events of a request that is repeated because its client has no token of it yet."""

    def __init__(self, answer: PartialAnswer, stream_format: StreamFormat) -> None:
        self._answer, self._format, self._parser = answer, stream_format, EventParser()

    def feed(self, piece: bytes) -> bytes:
        """Return the events for the client, without those that it has already."""
        return b"".join(map(self._convert, self._parser.feed(piece)))

    def _convert(self, event: ServerSentEvent) -> bytes:
        chunk = _chunk(event)
        if chunk is None:
            return event.raw
        repeated = self._format.repeat(self._answer, chunk)
        if repeated is None:
            return b""
        return encode_typed_events(repeated) if "type" in repeated else encode_event(repeated)


def _chunk(event: ServerSentEvent) -> Json | None:
    """Return the chunk of an event; None for comments, errors and the end, which are not
    converted."""
    if event.data is None or event.data == DONE:
        return None
    chunk: Json = msgspec.json.decode(event.data)
    return None if chunk.get("error") else chunk
