"""Streams of /v1/messages (https://docs.anthropic.com/en/api/messages-streaming).

The conversion to a chat is what vLLM 0.32 (entrypoints/anthropic/serving.py) and SGLang do. If they
differ, or if only one of them has a field, the stream is not continued.
"""

from typing import Any

from hpc_dynamo.dispatch.obstacles import NotContinuable, Obstacle
from hpc_dynamo.dispatch.partial_answer import PartialAnswer
from hpc_dynamo.dispatch.stream_formats.base import WITH_USAGE, plain_text, renamed
from hpc_dynamo.http.sse import encode_typed_events

Json = dict[str, Any]

# Fields that both engines read, by their names in a chat; empty: without effect on the output.
NAMES = {
    "cache_salt": "cache_salt", "max_tokens": "max_tokens", "messages": "messages",
    "metadata": "", "model": "model", "service_tier": "", "stop_sequences": "stop",
    "stream": "", "system": "system", "temperature": "temperature", "top_k": "top_k",
    "top_p": "top_p",
}  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {"tools": ([],)}
BILLING_HEADER = "x-anthropic-billing-header"  # vLLM removes such a block
# The message ends for one of these reasons, by the finish_reason of a chunk.
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
PARTS_OF_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessageStreamFormat:
    """See StreamFormat."""

    def chat_body(self, body: Json) -> Json:
        """Return the request as a chat. Raises NotContinuable."""
        chat = renamed(body, NAMES, NEUTRAL)
        messages = _system(chat.pop("system", None))
        for message in body["messages"]:
            if message["role"] not in ("user", "assistant"):
                raise NotContinuable(Obstacle.prompt, "a message in the middle has another role")
            content = plain_text(message["content"], ("text",))
            messages.append({"role": message["role"], "content": content})
        return chat | {"messages": messages} | WITH_USAGE

    def add(self, answer: PartialAnswer, event: Json) -> None:
        """Add an event. Blocks that are not text cannot be continued."""
        kind = event["type"]
        answer.sent.add(kind)
        if kind == "message_start":
            answer.head, answer.usage = event["message"], _counts(event["message"]["usage"])
        elif kind == "content_block_start":
            answer.parsed = answer.parsed or _unless(event["content_block"]["type"], "text")
        elif kind == "content_block_delta":
            delta = event["delta"]
            answer.parsed = answer.parsed or _unless(delta["type"], "text_delta")
            answer.text += delta.get("text") or ""
        elif kind == "content_block_stop":
            answer.text_ended = True
        elif kind == "message_delta":
            answer.finished = answer.usage_sent = True

    def repeat(self, answer: PartialAnswer, event: Json) -> Json | None:
        return None if event["type"] in answer.sent else event

    def writer(self, answer: PartialAnswer, body: Json) -> "MessageEventWriter":
        return MessageEventWriter(answer)


class MessageEventWriter:
    """See EventWriter. The answer is one content block of text."""

    def __init__(self, answer: PartialAnswer) -> None:
        self._sent, self._start = set(answer.sent), answer.head.get("usage") or {}
        self._choice: Json = {}
        self._usage: Json = {}

    def write(self, choices: list[Json], usage: Json | None, chunk: Json) -> bytes:
        self._usage = usage or self._usage
        return b"".join(map(self._add, choices))

    def _add(self, choice: Json) -> bytes:
        if choice.get("finish_reason"):
            self._choice = choice
        if not choice["text"]:
            return b""
        block = {"content_block": {"type": "text", "text": ""}}
        delta = {"delta": {"type": "text_delta", "text": choice["text"]}}
        return encode_typed_events(
            *self._once("content_block_start", index=0, **block),
            {"type": "content_block_delta", "index": 0, **delta},
        )

    def end(self) -> bytes:
        """Return the ends of the block and of the message."""
        stop: list[Json] = []
        if "content_block_start" in self._sent:
            stop = self._once("content_block_stop", index=0)
        ended = {"delta": self._stop_reason(), "usage": self._message_usage()}
        return encode_typed_events(
            *stop, *self._once("message_delta", **ended), *self._once("message_stop")
        )

    def _once(self, kind: str, **fields: Any) -> list[Json]:
        """Return the event unless the client has it."""
        if kind in self._sent:
            return []
        self._sent.add(kind)
        return [{"type": kind, **fields}]

    def _stop_reason(self) -> Json:
        reason, found = self._choice.get("finish_reason"), self._choice.get("stop_reason")
        if reason == "stop" and isinstance(found, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": found}
        return {"stop_reason": STOP_REASONS.get(reason or "stop"), "stop_sequence": None}

    def _message_usage(self) -> Json:
        """Return the counts, with the division of the prompt that the message began with."""
        prompt = {name: self._start[name] for name in PARTS_OF_PROMPT if self._start.get(name)}
        prompt = prompt or {"input_tokens": self._usage.get("prompt_tokens", 0)}
        return {"input_tokens": 0, **prompt, "output_tokens": self._usage.get("completion_tokens")}


def _system(system: Any) -> list[Json]:
    """Return the system message. Engines join several blocks differently."""
    if not system:
        return []
    text = plain_text(system, ("text",))
    if not isinstance(text, str) or text.startswith(BILLING_HEADER):
        raise NotContinuable(Obstacle.prompt, "the system prompt has several blocks")
    return [{"role": "system", "content": text}]


def _counts(usage: Json) -> Json | None:
    prompt = sum(usage.get(name) or 0 for name in PARTS_OF_PROMPT)
    return {"prompt_tokens": prompt} if prompt else None


def _unless(kind: str, expected: str) -> str:
    return "" if kind == expected else kind
