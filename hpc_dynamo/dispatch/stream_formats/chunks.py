"""Streams of /v1/chat/completions and /v1/completions, which are chunks."""

from typing import Any

from hpc_dynamo.dispatch.partial_answer import PartialAnswer
from hpc_dynamo.http.sse import DONE_EVENT, encode_event

Json = dict[str, Any]

OF_CHUNK = frozenset({"choices", "usage", "prompt_token_ids", "prompt_logprobs", "prompt_text"})
PLAIN_DELTA = frozenset({"role", "content"})  # other fields are results of an engine's parsers


class ChunkStreamFormat:
    """See StreamFormat. `chat` selects the form of the client's chunks."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat

    def chat_body(self, body: Json) -> Json:
        return body

    def add(self, answer: PartialAnswer, event: Json) -> None:
        """Add a chunk."""
        if not answer.head:
            answer.head = {name: value for name, value in event.items() if name not in OF_CHUNK}
        choices = event.get("choices") or []
        answer.usage = event.get("usage") or answer.usage
        answer.usage_sent = answer.usage_sent or (not choices and bool(event.get("usage")))
        answer.prompt_token_ids = event.get("prompt_token_ids") or answer.prompt_token_ids
        for choice in choices:
            _add_choice(answer, choice)

    def repeat(self, answer: PartialAnswer, event: Json) -> Json | None:
        choices = event.get("choices") or ()
        if answer.role_sent and choices and all(map(_only_role, choices)):
            return None
        return event | answer.head

    def writer(self, answer: PartialAnswer, body: Json) -> "ChunkWriter":
        return ChunkWriter(answer, chat=self._chat, top_logprobs=body.get("top_logprobs") or 0)


class ChunkWriter:
    """See EventWriter."""

    def __init__(self, answer: PartialAnswer, *, chat: bool, top_logprobs: int) -> None:
        self._head, self._offset = answer.head, len(answer.text)
        self._chat, self._top_logprobs = chat, top_logprobs
        self._role_sent = answer.role_sent or not chat
        self._usage_sent = answer.usage_sent

    def write(self, choices: list[Json], usage: Json | None, chunk: Json) -> bytes:
        if not choices and (usage is None or self._usage_sent):
            return b""
        own = {name: value for name, value in chunk.items() if name not in OF_CHUNK}
        counts = {"usage": usage} if usage else {}
        converted = [self._choice(choice) for choice in choices]
        return encode_event({**own, **self._head, "choices": converted, **counts})

    def end(self) -> bytes:
        return DONE_EVENT

    def _choice(self, choice: Json) -> Json:
        choice = dict(choice)
        text, logprobs = choice.pop("text"), choice.pop("logprobs", None)
        if not self._chat:
            return {"text": text, **choice, "logprobs": _shifted(logprobs, self._offset)}
        role = {} if self._role_sent else {"role": "assistant"}
        self._role_sent = True
        rows = _chat_logprobs(logprobs, self._top_logprobs)
        return {"delta": {**role, "content": text}, **choice, "logprobs": rows}


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
