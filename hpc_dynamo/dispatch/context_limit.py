"""Requests that are longer than the context of the model.

vLLM 0.32 and SGLang 0.5.23 refuse them with status 400, but only after the request has waited for
a worker. The errors here are those of vLLM.
"""

import re
from typing import Any

import msgspec

from hpc_dynamo.dispatch.execution import LIMITS, count
from hpc_dynamo.dispatch.refusal import refusal
from hpc_dynamo.engines import Body, field_value
from hpc_dynamo.errors import RequestFailed

# The start of one or several lists of them. A search of millions of spaces would take long.
TOKEN_IDS = re.compile(rb"\s{0,999}\[[\s\[]{0,999}[0-9]")


def require_context(body: Body, prompt_tokens: int, context_tokens: int) -> None:
    """Raise RequestFailed if the prompt or the response cannot have its length.

    `prompt_tokens` is the length of the longest prompt, 0 if unknown. `context_tokens` is the
    longest sequence that any worker accepts, 0 if unknown.
    """
    if not context_tokens:
        return
    name = next((name for name in LIMITS if field_value(body.get(name)) is not None), LIMITS[0])
    if (wanted := count(body, name)) > context_tokens:
        what = f"{name}={wanted} cannot be greater than max_model_len={context_tokens}."
        raise _refusal(f"{what} Please request fewer output tokens.", name, wanted)
    if prompt_tokens > context_tokens:
        limit = f"This model's maximum context length is {context_tokens} tokens."
        tokens = _length(body, prompt_tokens, context_tokens)
        size = f"at least {tokens}" if tokens == context_tokens + 1 else f"{tokens}"
        raise _refusal(
            f"{limit} However, your prompt contains {size} input tokens, which exceeds this limit "
            "even without any output tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            tokens,
        )


def least_tokens(prompt: Any) -> int:
    """Return a lower bound for the longest prompt if they are token ids, exact for one; else 0."""
    if not (ids := count_ids(prompt)):
        return 0
    lists = max(1, bytes(prompt).count(b"[") - 1)
    return -(-ids // lists)


def count_ids(prompt: Any) -> int:
    """Return the number of token ids in JSON, of one or several prompts; 0 for texts.

    `prompt` is not decoded: millions of ids would take a second.
    """
    if not isinstance(prompt, msgspec.Raw):
        return 0
    content = bytes(prompt)
    return content.count(b",") + 1 if TOKEN_IDS.match(content) else 0


def _refusal(message: str, param: str, value: int) -> RequestFailed:
    return refusal(f"{message} (parameter={param}, value={value})", param)


def _length(body: Body, prompt_tokens: int, context_tokens: int) -> int:
    """Return the length of a prompt. vLLM tokenizes one more token of a text than it accepts."""
    prompt = body.get("prompt")
    content = bytes(prompt) if isinstance(prompt, msgspec.Raw) else msgspec.json.encode(prompt)
    return prompt_tokens if TOKEN_IDS.match(content) else context_tokens + 1
