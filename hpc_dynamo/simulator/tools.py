"""Which tool an answer calls, as OpenAI's `tools` and `tool_choice` say.

Refusals as in vLLM 0.32 (`entrypoints/openai/chat_completion/protocol.py`).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.simulator.api_error import Refused

ToolChoice = str | dict[str, Any] | None

_USAGE = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | bool | None = None


class Tool(msgspec.Struct):
    function: Function
    type: str = "function"


def called(tools: Sequence[Tool] | None, choice: ToolChoice, *, auto: bool) -> Tool | None:
    """The tool to call: the named one, else the first. `auto`: whether to call one unasked.

    Raises Refused for a choice that does not fit the tools.
    """
    if tools is not None and not tools:
        what = "`tools` must not be an empty array. Either provide at least one tool or omit the "
        raise Refused(f"{what}field entirely.", param="tools")
    if choice == "none" or (choice is None and not tools):
        return None
    if not tools:
        raise Refused("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    if isinstance(choice, dict):
        return _named(tools, choice)
    if choice not in ("auto", "required", None):
        what = f"Invalid value for `tool_choice`: {choice}! Only named tools,"
        raise Refused(f'{what} "none", "auto" or "required" are supported.', param="tool_choice")
    return tools[0] if auto or choice == "required" else None


def _named(tools: Sequence[Tool], choice: dict[str, Any]) -> Tool:
    function = choice.get("function")
    if not isinstance(function, dict):
        what = f"Invalid value for `function`: `{function}` in `tool_choice`! {_USAGE}"
        raise Refused(what, param="tool_choice.function")
    if "name" not in function:
        what = f"Expected field `name` in `function` in `tool_choice`! {_USAGE}"
        raise Refused(what, param="tool_choice.function.name")
    for tool in tools:
        if tool.function.name == function["name"]:
            return tool
    what = "The tool specified in `tool_choice` does not match any of the specified `tools`"
    raise Refused(what, param="tool_choice")
