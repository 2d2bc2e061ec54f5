"""OpenAI's chat requests. `generation_request` has the fields of completions and chat."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from hpc_dynamo.simulator import prompts, tokenizer
from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.generation_request import GenerationRequest

Tools = list[dict[str, Any]]


class ContentPart(msgspec.Struct):
    """Part of a message's content. Only type `text` is supported."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None

    def text(self) -> str:
        """Return what the model reads. Raises RequestRejected for content that is not text."""
        content = self.content or ""
        parts = [ContentPart("text", content)] if isinstance(content, str) else content
        for part in parts:
            if part.type != "text":
                raise RequestRejected(f"the simulator reads only text, not {part.type}", "messages")
        calls = msgspec.json.encode(self.tool_calls).decode() if self.tool_calls else ""
        return "".join(part.text for part in parts) + calls


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of /v1/chat/completions. Tools are part of the prompt and are never called."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: Tools | None = None

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    def prompts(self, max_model_len: int) -> list[list[int]]:
        """Return the token ids of the chat. Raises RequestRejected.

        Ids in `kv_transfer_params` take precedence over the messages.
        """
        if given := self.kv_transfer_params and self.kv_transfer_params.prompt_token_ids:
            name = "kv_transfer_params.prompt_token_ids"
            return [prompts.from_ids(given, max_model_len, name)]
        return [prompts.from_chat(rendered(self.messages, self.tools), max_model_len)]


class TokenizeRequest(msgspec.Struct):
    """Body of vLLM's /tokenize: a prompt or messages."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: Tools | None = None
    add_generation_prompt: bool = True

    def tokens(self) -> list[int]:
        if self.messages is None:
            return tokenizer.encode(self.prompt or "")
        chat = rendered(self.messages, self.tools)
        return tokenizer.render(chat, generate=self.add_generation_prompt)


def rendered(messages: Sequence[ChatMessage], tools: Tools | None) -> list[tuple[str, str]]:
    """Return (role, text) pairs as a chat template shows them: the tools before all others."""
    shown = [("system", msgspec.json.encode(tools).decode())] if tools else []
    return [*shown, *((message.role, message.text()) for message in messages)]
