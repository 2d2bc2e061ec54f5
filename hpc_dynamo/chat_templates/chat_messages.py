"""OpenAI messages and tools in the form that chat templates expect.

Does what vLLM 0.32 does with a body of /v1/chat/completions before it renders it: parts become
text, arguments of calls become objects, unknown fields of a message are dropped.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from hpc_dynamo.chat_templates.refusals import UnsupportedPrompt

_TEXT_OF = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA = frozenset(
    f"{kind}_{form}" for kind in ("audio", "image", "video") for form in ("embeds", "pil", "url")
)
_PART_FIELDS = _MEDIA | {
    *("type", "text", "thinking", "refusal", "name", "data", "uuid", "closed"),
    *("file", "input_audio", "prompt_cache_breakpoint"),
}
# One client sends a line that changes with every request. vLLM drops it to keep prefixes equal.
_BILLING = "x-anthropic-billing-header"
_OPTIONAL_TOOL_FIELDS = ("strict", "defer_loading")


def chat_messages(messages: object, *, parts: bool) -> list[dict[str, Any]]:
    """Return messages for a template; with `parts` their content stays a list of typed parts.

    Raises UnsupportedPrompt for images and other media, and for values that are not messages.
    """
    if not isinstance(messages, list) or not messages:
        raise UnsupportedPrompt("messages is not a list of objects")
    return [_message(message, parts) for message in messages]


def merge_developer_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with developer and system messages merged into one at the start."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    messages = [_as_system(message) for message in messages]
    system = [message for message in messages if message["role"] == "system"]
    if len(system) == 1 and messages[0] is system[0]:
        return messages
    texts = filter(None, map(_content_text, system))
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]


def normalized_tools(tools: object) -> list[dict[str, Any]] | None:
    """Return tools with the fields that engines know, in the engines' order."""
    if tools is None:
        return None
    if not isinstance(tools, list) or not tools:
        raise UnsupportedPrompt("tools is not a list of objects")
    return [_tool(tool) for tool in tools]


def _message(message: object, parts: bool) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(role := message.get("role"), str):
        raise UnsupportedPrompt("messages is not a list of objects with a role")
    content = message.get("content")
    if parts or not isinstance(content, str) or role == "system":
        content = _content(role, content, parts)
    result: dict[str, Any] = {"role": role, "content": content}
    if role == "assistant":
        _add_assistant_fields(result, message)
    elif role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    for name in ("name", "task"):
        if isinstance(message.get(name), str):
            result[name] = message[name]
    if role == "developer":
        result["tools"] = message.get("tools")
    return result


def _content(role: str, content: object, parts: bool) -> str | list[dict[str, Any]]:
    if content is None:
        content = []
    elif isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise UnsupportedPrompt("content is neither text nor a list of parts")
    texts = [part for part in map(_part, content) if part is not None]
    if role == "system":
        texts = [part for part in map(_without_billing, texts) if part is not None]
    if parts and role != "tool":
        return texts
    lines = (part["text"] for part in texts)
    return "\n".join(lines if parts else filter(None, lines))


def _part(part: object) -> dict[str, Any] | None:
    """Return a part as text, with the fields that are not OpenAI's; None if it is empty."""
    kind = part.get("type") if isinstance(part, dict) else None
    name = _TEXT_OF.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or name is None or part.get("uuid") is not None:
        raise UnsupportedPrompt(f"a content part of type {kind!r}")
    text = part.get(name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise UnsupportedPrompt("a content part without text")
    extra = {name: value for name, value in part.items() if name not in _PART_FIELDS}
    return {"type": "text", "text": text, **extra}


def _without_billing(part: dict[str, Any]) -> dict[str, Any] | None:
    if not part["text"].startswith(_BILLING):
        return part
    rest = part["text"].partition("\n")[2]
    return {**part, "text": rest} if rest else None


def _add_assistant_fields(result: dict[str, Any], message: Mapping[str, Any]) -> None:
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise UnsupportedPrompt("tool_calls is not a list")
        result["tool_calls"] = list(map(_call, calls))
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        result["reasoning"] = result["reasoning_content"] = reasoning


def _call(call: object) -> dict[str, Any]:
    """Return a tool call with its fields in the order of the engine, as JSON in prompts shows."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise UnsupportedPrompt("a tool call without a function")
    if call.get("type") != "function":
        raise UnsupportedPrompt("a tool call that is not of type 'function'")
    function = _ordered(function, ("arguments", "name"))
    function["arguments"] = _arguments(function.get("arguments"))
    return _ordered({**call, "function": function}, ("id", "function", "type"))


def _ordered(record: Mapping[str, Any], first: Iterable[str]) -> dict[str, Any]:
    return {name: record[name] for name in first if name in record} | dict(record)


def _arguments(text: object) -> dict[str, Any]:
    if isinstance(text, str):
        try:
            text = json.loads(text) if text else None
        except (ValueError, RecursionError):
            return {}
    return text if isinstance(text, dict) else {}


def _tool(tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(function, dict) or "name" not in function:
        raise UnsupportedPrompt("a tool without a named function")
    known = {name: function.get(name) for name in ("name", "description", "parameters")}
    defer = (
        {"defer_loading": tool["defer_loading"]} if tool.get("defer_loading") is not None else {}
    )
    own = {k: function[k] for k in _OPTIONAL_TOOL_FIELDS if function.get(k) is not None}
    return {"type": "function", "function": known | defer | own, **defer}


def _as_system(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "developer":
        return message
    rest = {name: value for name, value in message.items() if name != "tools"}
    return {**rest, "role": "system"}


def _content_text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return str(content)
