"""Content of a stream that was cut off, as far as its client received it."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from hpc_dynamo.http.sse import DONE, EventParser

Json = dict[str, Any]

OF_CHUNK = frozenset({"choices", "usage", "prompt_token_ids", "prompt_logprobs", "prompt_text"})
PLAIN_DELTA = frozenset({"role", "content"})  # other fields are results of an engine's parsers


@dataclass
class PartialAnswer:
    """Content of the events that a client has received. Mutable while it is read."""

    head: Json = field(default_factory=dict)  # fields that all chunks share, such as the id
    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # only if the client asked for them
    prompt_token_ids: list[int] = field(default_factory=list)
    logprobs: int = 0  # tokens with log-probabilities
    role_sent: bool = False
    finished: bool = False
    usage: Json | None = None  # last one that was sent
    usage_sent: bool = False  # in a chunk of its own, at the end
    done: bool = False
    # Field of a delta that cannot be converted back to the generated text.
    parsed: str = ""

    @property
    def empty(self) -> bool:
        """Return True if no token was sent."""
        return not (self.text or self.token_ids or self.logprobs or self.parsed or self.finished)


def read_answer(content: bytes) -> PartialAnswer:
    """Return the content of a stream of /v1/completions or /v1/chat/completions.

    Raises msgspec.DecodeError, or TypeError, ValueError, KeyError or AttributeError if it is none.
    """
    answer = PartialAnswer()
    for event in EventParser().feed(content):
        if event.data == DONE:
            answer.done = True
        elif event.data:
            _add_chunk(answer, msgspec.json.decode(event.data))
    return answer


def _add_chunk(answer: PartialAnswer, chunk: Json) -> None:
    if not answer.head:
        answer.head = {name: value for name, value in chunk.items() if name not in OF_CHUNK}
    choices = chunk.get("choices") or []
    answer.usage = chunk.get("usage") or answer.usage
    answer.usage_sent = answer.usage_sent or (not choices and bool(chunk.get("usage")))
    answer.prompt_token_ids = chunk.get("prompt_token_ids") or answer.prompt_token_ids
    for choice in choices:
        _add_choice(answer, choice)


def _add_choice(answer: PartialAnswer, choice: Json) -> None:
    if choice.get("index"):
        answer.parsed = "several choices"
    delta = choice.get("delta") or {}
    answer.role_sent = answer.role_sent or "role" in delta
    answer.text += choice.get("text") or delta.get("content") or ""
    answer.parsed = answer.parsed or next((k for k in delta.keys() - PLAIN_DELTA if delta[k]), "")
    answer.token_ids += choice.get("token_ids") or []
    answer.prompt_token_ids = choice.get("prompt_token_ids") or answer.prompt_token_ids
    logprobs = choice.get("logprobs") or {}
    answer.logprobs += len(logprobs.get("content") or logprobs.get("tokens") or [])
    answer.finished = answer.finished or choice.get("finish_reason") is not None
