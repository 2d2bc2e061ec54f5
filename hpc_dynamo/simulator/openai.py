"""OpenAI's completions and chat, with vLLM's additions: requests in, records out.

Only what the simulator needs is typed; unknown fields are ignored as vLLM ignores them, and
what it cannot do (logprobs, echo) is refused and not dropped. Wording of errors as in vLLM.
"""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.sequence import Sampling, Source

Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class Refused(Exception):
    """A request that cannot be served: status and a body in OpenAI's form."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, status, param)


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    kinds = {401: "AuthenticationError", 404: "NotFoundError"}
    kind = kinds.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class TransferParams(msgspec.Struct):
    """vLLM's kv_transfer_params, both ways."""

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_host: str | None = None
    remote_port: int | None = None
    remote_block_ids: list[list[int] | int] | None = None

    def source(self) -> Source | None:
        """Where to pull from. Raises Refused where something is missing."""
        if not self.do_remote_prefill:
            return None
        names = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
        missing = [n for n in (*names, "remote_block_ids") if getattr(self, n) is None]
        if missing:
            raise Refused(f"kv_transfer_params lacks {', '.join(missing)}")
        blocks = list[int]()
        for group in self.remote_block_ids or ():
            blocks += group if isinstance(group, list) else [group]
        engine, request, host = self.remote_engine_id, self.remote_request_id, self.remote_host
        return Source(str(engine), str(request), str(host), self.remote_port or 0, tuple(blocks))


class Common(msgspec.Struct, kw_only=True):
    """Fields of both endpoints."""

    model: str | None = None
    max_tokens: Positive | None = None
    min_tokens: Natural = 0
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] = 1
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    kv_transfer_params: TransferParams | None = None
    echo: bool = False
    logprobs: bool | int | None = None

    def check(self, model: str) -> None:
        """Raises Refused for another model and for what the simulator cannot do."""
        if self.model not in (None, "", model):
            what = f"The model `{self.model}` does not exist. Valid aliases: {model}."
            raise Refused(what, status=404, param="model")
        if self.echo or self.logprobs:
            name = "echo" if self.echo else "logprobs"
            raise Refused(f"{name} is not supported by the simulator", param=name)
        if self.stream_options is not None and not self.stream:
            what = "Stream options can only be defined when `stream=True`."
            raise Refused(what, param="stream_options")
        if self.n > 1 and self.temperature == 0:
            raise Refused(f"n must be 1 when using greedy sampling, got {self.n}.", param="n")

    def sampling(self, prompt_tokens: int, max_model_len: int, max_tokens: int | None) -> Sampling:
        """Raises Refused where prompt and answer together are too long."""
        room = max_model_len - prompt_tokens
        if room < 1:
            raise Refused(
                f"This model's maximum context length is {max_model_len} tokens. However, your "
                f"prompt contains {prompt_tokens} input tokens, which exceeds this limit even "
                "without any output tokens. Please reduce the length of the input prompt.",
                param="input_tokens",
            )
        wanted = room if max_tokens is None else max_tokens
        if wanted > room:
            raise Refused(
                f"This model's maximum context length is {max_model_len} tokens. However, you "
                f"requested {wanted} output tokens and your prompt contains {prompt_tokens} "
                f"input tokens, for a total of {wanted + prompt_tokens} tokens.",
                param="max_tokens",
            )
        if self.min_tokens > wanted:
            what = f"min_tokens must be less than or equal to max_tokens={wanted}"
            raise Refused(f"{what}, got {self.min_tokens}.", param="min_tokens")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stop:
            raise Refused("stop cannot contain an empty string.", param="stop")
        return Sampling(wanted, self.min_tokens, self.ignore_eos, tuple(stop))


class CompletionRequest(Common, kw_only=True):
    """Body of /v1/completions."""

    prompt: str | list[str | int | list[int]]

    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt. Raises Refused for a mixed, empty or impossible one."""
        if isinstance(self.prompt, str):
            return [_checked(tokenizer.encode(self.prompt))]
        texts = [p for p in self.prompt if isinstance(p, str)]
        ids = [p for p in self.prompt if isinstance(p, int)]
        lists = [p for p in self.prompt if isinstance(p, list)]
        if len(self.prompt) not in (len(texts), len(ids), len(lists)):
            what = "prompt is a text, a list of token ids, or a list of one of these"
            raise Refused(what, param="prompt")
        if texts or lists:
            return [_checked(p) for p in (*map(tokenizer.encode, texts), *lists)]
        return [_checked(ids)]


class Part(msgspec.Struct):
    type: str
    text: str = ""


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None

    def text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        other = next((part.type for part in self.content if part.type != "text"), None)
        if other:
            raise Refused(f"the simulator reads text only, not {other}", param="messages")
        return "".join(part.text for part in self.content)


class ChatRequest(Common, kw_only=True):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Positive | None = None

    def prompts(self) -> list[list[int]]:
        return [tokenizer.render([(m.role, m.text()) for m in self.messages])]


class TokenizeRequest(msgspec.Struct):
    """Body of vLLM's /tokenize: a prompt or messages."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool = True


class DetokenizeRequest(msgspec.Struct):
    tokens: list[int]


Request = CompletionRequest | ChatRequest


def _checked(tokens: list[int]) -> list[int]:
    if not tokens:
        raise Refused("The decoder prompt cannot be empty", param="prompt")
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < tokenizer.VOCABULARY:
            raise Refused(f"Token id {token} is out of vocabulary", param="prompt")
    return tokens


@dataclass(frozen=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True)
class Reply:
    """Makes the records of one answer, whole or in chunks, for either endpoint."""

    kind: Literal["text_completion", "chat.completion"]
    id: str
    model: str
    created: int

    @classmethod
    def to(cls, request: Request, request_id: str, model: str) -> "Reply":
        chat = isinstance(request, ChatRequest)
        prefix = "chatcmpl" if chat else "cmpl"
        kind: Literal["text_completion", "chat.completion"]
        kind = "chat.completion" if chat else "text_completion"
        return cls(kind, f"{prefix}-{request_id}", model, int(time.time()))

    def whole(self, choices: list[dict[str, Any]], usage: Usage, handover: Any) -> dict[str, Any]:
        head = self._head(self.kind)
        return {**head, "choices": choices, "usage": usage.body(), "kv_transfer_params": handover}

    def choice(
        self, index: int, text: str, finish: str | None, stop_reason: str | None
    ) -> dict[str, Any]:
        content: dict[str, Any] = {"text": text}
        if self.kind == "chat.completion":
            content = {"message": {"role": "assistant", "content": text}}
        end = {"logprobs": None, "finish_reason": finish, "stop_reason": stop_reason}
        return {"index": index, **content, **end}

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """The chunks before any text: chat says once who speaks."""
        if self.kind != "chat.completion":
            return []
        return [
            self._chunk(i, {"delta": {"role": "assistant", "content": ""}}) for i in range(choices)
        ]

    def chunk(
        self, index: int, text: str, finish: str | None, stop_reason: str | None
    ) -> dict[str, Any]:
        chat = self.kind == "chat.completion"
        content = {"delta": {"content": text}} if chat else {"text": text}
        return self._chunk(index, content, finish, stop_reason)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage.body()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat.completion" else self.kind

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        finish: str | None = None,
        stop_reason: str | None = None,
    ) -> dict[str, Any]:
        end = {"logprobs": None, "finish_reason": finish, "stop_reason": stop_reason}
        return {**self._head(self._chunk_kind), "choices": [{"index": index, **content, **end}]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
