"""OpenAI's chat: requests in. See `openai` for what both endpoints share."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from hpc_dynamo.simulator import prompts, tokenizer
from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.json_schema_sampler import instance
from hpc_dynamo.simulator.openai import Common, alternatives
from hpc_dynamo.simulator.tools import Tool, ToolChoice, called


class Part(msgspec.Struct):
    type: str
    text: str = ""


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None

    def text(self) -> str:
        """What the model reads of it. Raises Refused for what is no text."""
        parts = (
            self.content if isinstance(self.content, list) else [Part("text", self.content or "")]
        )
        other = next((part.type for part in parts if part.type != "text"), None)
        if other:
            raise Refused(f"the simulator reads text only, not {other}", param="messages")
        calls = msgspec.json.encode(self.tool_calls).decode() if self.tool_calls else ""
        return "".join(part.text for part in parts) + calls


class ChatRequest(Common, kw_only=True):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = None

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit

    def alternatives(self) -> int | None:
        """See CompletionRequest."""
        if self.top_logprobs and not self.logprobs:
            what = "when using `top_logprobs`, `logprobs` must be set to true."
            raise Refused(what, param="top_logprobs")
        return alternatives(self.top_logprobs or 0) if self.logprobs else None

    def tool(self) -> Tool | None:
        """The tool to call. Where the choice is ours, one is called until its result is there."""
        return called(self.tools, self.tool_choice, auto=self.messages[-1].role != "tool")

    def script(self) -> str:
        tool = self.tool()
        return instance(tool.function.parameters) if tool else super().script()

    def prompts(self, max_model_len: int) -> list[list[int]]:
        """Token ids of the chat, or those that the prefill's caller sent along. Raises Refused."""
        given = self.kv_transfer_params and self.kv_transfer_params.prompt_token_ids
        if given:
            name = "kv_transfer_params.prompt_token_ids"
            return [prompts.from_ids(given, max_model_len, name)]
        return [prompts.from_chat(said(self.messages, self.tools), max_model_len)]


class TokenizeRequest(msgspec.Struct):
    """Body of vLLM's /tokenize: a prompt or messages."""

    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True

    def tokens(self) -> list[int]:
        if self.messages is None:
            return tokenizer.encode(self.prompt or "")
        chat = said(self.messages, self.tools)
        return tokenizer.render(chat, generate=self.add_generation_prompt)


def said(messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[tuple[str, str]]:
    """What a chat template would show of it: (role, text) pairs, the tools before all others."""
    shown = [("system", msgspec.json.encode(tools).decode())] if tools else []
    return [*shown, *((m.role, m.text()) for m in messages)]
