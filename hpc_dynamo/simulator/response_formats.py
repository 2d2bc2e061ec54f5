"""What an answer looks like: a text, a chat message, or a call of a tool.

Each form turns text into the part of a choice that holds it, whole or as a stream's delta.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from hpc_dynamo.simulator.token_generator import likely
from hpc_dynamo.simulator.tokenizer import decode

Record = dict[str, Any]


class Form(Protocol):
    prefix: str  # of the answer's id
    kind: str
    chunk_kind: str

    def whole(self, index: int, text: str) -> Record: ...
    def delta(self, text: str) -> Record: ...

    def opening(self, index: int) -> list[Record]:
        """The deltas before any text."""

    def finish(self, reason: str | None) -> str | None: ...

    def logprobs(self, tokens: Sequence[int], start: int, count: int, offset: int) -> Record:
        """Of `tokens`, the first being the answer's token `start` at character `offset`.

        `count` alternatives a token; with 0 the token alone.
        """


class Text:
    """/v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def whole(self, index: int, text: str) -> Record:
        return {"text": text}

    def delta(self, text: str) -> Record:
        return {"text": text}

    def opening(self, index: int) -> list[Record]:
        return []

    def finish(self, reason: str | None) -> str | None:
        return reason

    def logprobs(self, tokens: Sequence[int], start: int, count: int, offset: int) -> Record:
        tables = [likely(token, start + i, max(1, count)) for i, token in enumerate(tokens)]
        texts = [decode([token]) for token in tokens]
        return {
            "text_offset": [offset + sum(map(len, texts[:i])) for i in range(len(texts))],
            "token_logprobs": [table[0][1] for table in tables],
            "tokens": texts,
            "top_logprobs": [{decode([t]): value for t, value in table} for table in tables],
        }


class Chat:
    """/v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def whole(self, index: int, text: str) -> Record:
        return {"message": {"role": "assistant", "content": text}}

    def delta(self, text: str) -> Record:
        return {"delta": {"content": text}}

    def opening(self, index: int) -> list[Record]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def finish(self, reason: str | None) -> str | None:
        return reason

    def logprobs(self, tokens: Sequence[int], start: int, count: int, offset: int) -> Record:
        rows = list[Record]()
        for i, token in enumerate(tokens):
            table = likely(token, start + i, max(1, count))
            rows.append({**_row(*table[0]), "top_logprobs": [_row(*t) for t in table[:count]]})
        return {"content": rows}


class ToolCall(Chat):
    """A chat message that calls `name`; its text is the arguments."""

    def __init__(self, name: str, request_id: str, *, named: bool) -> None:
        self._name, self._id, self._named = name, f"chatcmpl-tool-{request_id}", named

    def whole(self, index: int, text: str) -> Record:
        calls = [self._call(index, text)]
        return {"message": {"role": "assistant", "content": "", "tool_calls": calls}}

    def delta(self, text: str) -> Record:
        return {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}

    def opening(self, index: int) -> list[Record]:
        begun = {"delta": {"tool_calls": [{"index": 0, **self._call(index, "")}]}}
        return [*super().opening(index), begun]

    def finish(self, reason: str | None) -> str | None:
        """As vLLM and OpenAI: `stop` where the request itself named the tool."""
        return "tool_calls" if reason == "stop" and not self._named else reason

    def _call(self, index: int, arguments: str) -> Record:
        function = {"name": self._name, "arguments": arguments}
        return {"id": f"{self._id}-{index}", "type": "function", "function": function}


def _row(token: int, value: float) -> Record:
    text = decode([token])
    return {"token": text, "logprob": value, "bytes": list(text.encode())}
