"""Text of chat requests, rendered with the templates of one model."""

from collections.abc import Mapping
from typing import Any, Self

from hpc_dynamo.chat_templates.chat_messages import (
    chat_messages,
    merge_developer_messages,
    normalized_tools,
)
from hpc_dynamo.chat_templates.refusals import PromptRejected, UnsupportedPrompt
from hpc_dynamo.chat_templates.template import ChatTemplate, compile_template


class ChatRenderer:
    """Renders bodies of /v1/chat/completions. Time and memory are not limited here.

    `templates` are texts by name, `special` the special tokens that they may use. A model with
    `unsupported` (a reason) is rendered only by its engine.
    """

    def __init__(
        self, templates: Mapping[str, str], special: Mapping[str, str], unsupported: str = ""
    ) -> None:
        self._templates, self._special = dict(templates), dict(special)
        self._unsupported = unsupported

    def state(self) -> tuple[Any, ...]:
        """Return what `from_state` needs, in types that `marshal` can write."""
        return self._templates, self._special, self._unsupported

    @classmethod
    def from_state(cls, state: tuple[Any, ...]) -> Self:
        """Return the renderer whose `state` this is."""
        return cls(*state)

    def render(self, body: Mapping[str, Any]) -> str:
        """Return the text that the engine tokenizes for a body.

        Raises UnsupportedPrompt if only the engine can render it, and PromptRejected.
        """
        if body.get("truncate_prompt_tokens") is not None:
            raise UnsupportedPrompt("truncate_prompt_tokens")
        variables = self._variables(body)
        template = self._template(body, variables["tools"])
        messages = chat_messages(body.get("messages"), parts=template.expects_content_parts)
        if not template.knows_developer:
            messages = merge_developer_messages(messages)
        if not variables.pop("continue_final_message"):
            return template.render(messages, variables)
        if variables["add_generation_prompt"]:
            raise PromptRejected("continue_final_message needs add_generation_prompt to be false")
        return template.render_continued(messages, variables)

    def _template(self, body: Mapping[str, Any], tools: object) -> ChatTemplate:
        if self._unsupported:
            raise UnsupportedPrompt(self._unsupported)
        if body.get("chat_template") is not None:
            raise UnsupportedPrompt("a chat template in the request")
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise UnsupportedPrompt("the model has no chat template")
        return compile_template(self._templates[name])

    def _variables(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables that a template sees in addition to the messages."""
        kwargs = body.get("chat_template_kwargs") or {}
        if not isinstance(kwargs, dict) or {"chat_template", "tokenize"} & kwargs.keys():
            raise UnsupportedPrompt("chat_template_kwargs that engines reject")
        effort = body.get("reasoning_effort")
        thinking = {} if effort is None else {"enable_thinking": effort != "none"}
        requested = {
            **thinking,
            **kwargs,
            **{name: body[name] for name in ("documents", "reasoning_effort") if body.get(name)},
            "add_generation_prompt": _flag(body, "add_generation_prompt", True),
            "continue_final_message": _flag(body, "continue_final_message", False),
        }
        kept = {name: value for name, value in requested.items() if not _unset(value)}
        tools = normalized_tools(body.get("tools"))
        return self._special | {"documents": None, "tools": tools} | kept


def _unset(value: object) -> bool:
    return value is None or value == "auto"


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise UnsupportedPrompt(f"{name} is not a boolean")
    return value
