"""Converts the events of a continuation into those of the stream that it continues."""

from typing import Any

import msgspec

from hpc_dynamo.dispatch.continuation import ContinuationDiffers, Cut
from hpc_dynamo.dispatch.partial_answer import OF_CHUNK, PartialAnswer
from hpc_dynamo.http.sse import DONE, DONE_EVENT, EventParser, ServerSentEvent, encode_event

Json = dict[str, Any]


class ChunkConverter:
    """Converts one continuation.

    `chat` selects the form of the client's stream. `prompt_tokens` is the length of the client's
    prompt, and `output_tokens` that of the output before the continuation.
    """

    def __init__(
        self, answer: PartialAnswer, cut: Cut, *, chat: bool, top_logprobs: int | None,
        prompt_tokens: int, output_tokens: int,
    ) -> None:  # fmt: skip
        self._answer, self._chat, self._top_logprobs = answer, chat, top_logprobs
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        self._repeated, self._offset = cut.repeated, len(cut.kept)
        self._role_sent = answer.role_sent or not chat
        self._parser = EventParser()

    def feed(self, piece: bytes) -> bytes:
        """Return the events for the client.

        Raises ContinuationDiffers, and what `read_answer` raises for an event that is no chunk.
        """
        return b"".join(map(self._convert, self._parser.feed(piece)))

    def closing(self, *, usage: bool, finish: bool) -> bytes:
        """Return the end of a stream of which all tokens were sent."""
        events = list[bytes]()
        if finish:
            events.append(self._event({}, [self._choice({"finish_reason": "length"})]))
        if usage and not self._answer.usage_sent:
            counts = self._answer.usage or self._usage({"completion_tokens": 0})
            events.append(encode_event({**self._answer.head, "choices": [], "usage": counts}))
        return b"".join([*events, DONE_EVENT])

    def _convert(self, event: ServerSentEvent) -> bytes:
        chunk = _chunk(event)
        if chunk is None:
            return event.raw
        if self._answer.finished:  # only the usage is missing
            return self._event(chunk, []) if chunk.get("usage") else b""
        choices = [self._choice(choice) for choice in chunk.get("choices") or ()]
        kept = [choice for choice in choices if choice]
        if choices and not kept:
            return b""
        return self._event(chunk, kept)

    def _event(self, chunk: Json, choices: list[Json]) -> bytes:
        own = {name: value for name, value in chunk.items() if name not in OF_CHUNK}
        usage = {"usage": self._usage(chunk["usage"])} if chunk.get("usage") else {}
        return encode_event({**own, **self._answer.head, "choices": choices, **usage})

    def _choice(self, choice: Json) -> Json:
        """Return the choice for the client, empty if it has nothing new."""
        text = self._new_text(choice.pop("text", ""))
        if choice.get("finish_reason") and self._repeated:
            raise ContinuationDiffers("it ends before the text that was already sent")
        if not (text or choice.get("finish_reason") or choice.get("logprobs")):
            return {}
        for name in ("prompt_logprobs", "prompt_token_ids", "prompt_text"):
            choice.pop(name, None)
        choice.setdefault("index", 0)
        if not self._chat:
            choice["logprobs"] = _shifted(choice.get("logprobs"), self._offset)
            return {"text": text, **choice}
        role = {} if self._role_sent else {"role": "assistant"}
        self._role_sent = True
        choice["logprobs"] = _chat_logprobs(choice.get("logprobs"), self._top_logprobs or 0)
        return {"delta": {**role, "content": text}, **choice}

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


class RepeatedChunks:
    """Events of a request that is repeated because its client has no token of it yet."""

    def __init__(self, answer: PartialAnswer) -> None:
        self._answer, self._parser = answer, EventParser()

    def feed(self, piece: bytes) -> bytes:
        """Return the events for the client, without those that it has already."""
        return b"".join(map(self._convert, self._parser.feed(piece)))

    def _convert(self, event: ServerSentEvent) -> bytes:
        chunk = _chunk(event)
        if chunk is None:
            return event.raw
        choices = chunk.get("choices") or ()
        if self._answer.role_sent and choices and all(map(_only_role, choices)):
            return b""
        return encode_event(chunk | self._answer.head)


def _chunk(event: ServerSentEvent) -> Json | None:
    """Return the chunk of an event; None for comments, errors and the end, which are not
    converted."""
    if event.data is None or event.data == DONE:
        return None
    chunk: Json = msgspec.json.decode(event.data)
    return None if chunk.get("error") else chunk


def _only_role(choice: Json) -> bool:
    delta = choice.get("delta") or {}
    return "role" in delta and not any(value for name, value in delta.items() if name != "role")


def _shifted(logprobs: Json | None, characters: int) -> Json | None:
    """Return log-probabilities of /v1/completions with offsets in the whole text."""
    if not logprobs or not logprobs.get("text_offset"):
        return logprobs
    return logprobs | {"text_offset": [at + characters for at in logprobs["text_offset"]]}


def _chat_logprobs(logprobs: Json | None, top: int) -> Json | None:
    """Convert log-probabilities of /v1/completions into those of /v1/chat/completions."""
    if not logprobs:
        return None
    tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    alternatives = logprobs.get("top_logprobs") or [None] * len(tokens)
    rows = []
    for token, value, others in zip(tokens, values, alternatives, strict=True):
        best = list((others or {}).items())[:top]
        row = _row(token, value) | {"top_logprobs": [_row(*each) for each in best]}
        rows.append(row)
    return {"content": rows}


def _row(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}
