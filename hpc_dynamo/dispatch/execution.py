"""Decide from path and body how a request is executed on the workers.

- disaggregated: a prefill worker computes the prompt's KV cache, which a decode worker pulls
- aggregated: the decode worker does everything (vLLM, TensorRT-LLM), or rejects it (SGLang)
- fan-out: several disaggregated requests with one sample each, whose responses are merged

A KV transfer belongs to one sequence. In vLLM 0.32 all prompts of a list read the blocks of the
first, which returns wrong text with status 200 or crashes the engine. More samples of one
prompt find the blocks freed. SGLang 0.5.23 never answers `n` > 1, because all samples share one
bootstrap room (sgl-project/sglang#30723), but accepts lists of prompts. Only the body decides, so
a request is executed in the same way if its token ids are unknown.

Values are read as the engines' pydantic models read them: `"2"`, `2.0` and `true` are integers.
An invalid value is left to one engine, which rejects it with its own message.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hpc_dynamo.engines import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    Body,
    ConcurrentProtocol,
    PdProtocol,
    field_value,
)
from hpc_dynamo.engines.pd_protocol import UNREADABLE
from hpc_dynamo.json_reader import only_ids

# Types of tools that the client runs. With other tools an engine generates several times for one
# request, and would read the same KV cache each time.
CLIENT_TOOLS = frozenset({"custom", "function"})

# Fields for the maximum length of the response; the first that is set counts.
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

MALFORMED: Final = -1  # replaces counts that are not integers
TOKEN_IDS = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*[0-9]")  # the start of a list of them in JSON
MAX_SCALAR_BYTES = 10_000
OFF = ("false", "f", "0", "off", "no", "n")  # values that pydantic reads as false


@dataclass(frozen=True, slots=True)
class Execution:
    """Execution of a request; with `samples` > 1, as that many requests with one sample each."""

    disaggregated: bool
    samples: int = 1


AGGREGATED = Execution(disaggregated=False)
DISAGGREGATED = Execution(disaggregated=True)


def choose_execution(
    path: str, body: Body, protocol: PdProtocol, *, tokens: int = 0, context_tokens: int = 0
) -> Execution:
    """Return how workers in prefill and decode roles execute this request.

    `path` has no query string. `tokens` is the length of the prompt and `context_tokens` that of
    the model's context, 0 if unknown.
    """
    if path not in protocol.paths or not _generates_once(path, body):
        return AGGREGATED
    if isinstance(protocol, ConcurrentProtocol):
        samples = count(body, "n") if path in (CHAT, COMPLETIONS) else 1
        return Execution(disaggregated=True, samples=samples) if samples > 0 else AGGREGATED
    one = _is_one_sequence(path, body) and _fits(body, tokens, context_tokens)
    return DISAGGREGATED if one else AGGREGATED


def count(body: Body, field: str, default: int = 1) -> int:
    """Return the integer in a field; `default` if it is unset or null, MALFORMED if invalid."""
    value = _scalar(body.get(field))
    if value is None:
        return default
    if not isinstance(value, bool | int | float | str):
        return MALFORMED
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return MALFORMED
    return int(number) if number.is_integer() else MALFORMED


def is_off(body: Body, field: str) -> bool:
    """Return True if a boolean field is false or unset, as pydantic reads it."""
    value = _scalar(body.get(field))
    return value.lower() in OFF if isinstance(value, str) else value in (None, False)


def _scalar(value: Any) -> Any:
    """Return a number, a boolean or a text; a long array is not decoded."""
    long = isinstance(value, msgspec.Raw) and len(memoryview(value)) > MAX_SCALAR_BYTES
    return UNREADABLE if long else field_value(value)


def _generates_once(path: str, body: Body) -> bool:
    """Return False if an earlier response, stored on one worker, or more turns may be needed."""
    if path != RESPONSES:
        return True
    if not is_off(body, "background") or not is_off(body, "previous_response_id"):
        return False
    tools = field_value(body.get("tools")) or []
    return isinstance(tools, list | tuple) and all(
        isinstance(tool, dict) and tool.get("type", "function") in CLIENT_TOOLS for tool in tools
    )


def _is_one_sequence(path: str, body: Body) -> bool:
    """Return True for one prompt with one sample, if the response does not describe the prompt."""
    if count(body, "n") != 1 or count(body, "best_of") != 1:
        return False
    if not (is_off(body, "use_beam_search") and is_off(body, "echo")):
        return False
    if any(
        field_value(body.get(field)) is not None for field in ("prompt_logprobs", "prompt_embeds")
    ):
        return False
    return path != COMPLETIONS or _prompt_count(body.get("prompt")) == 1


def _fits(body: Body, tokens: int, context_tokens: int) -> bool:
    """Return False if the engine would reject these lengths, so that no prefill is wasted."""
    limit = next(
        (count(body, name) for name in LIMITS if field_value(body.get(name)) is not None), 1
    )
    if limit < 1:
        return False
    return not context_tokens or (tokens < context_tokens and limit <= context_tokens)


def _prompt_count(prompt: Any) -> int:
    """Return the number of prompts in a completion's `prompt`, 0 if it is invalid.

    Lists of token ids in JSON, which may be long, are not decoded.
    """
    if isinstance(prompt, msgspec.Raw) and TOKEN_IDS.match(memoryview(prompt)):
        return 1
    if isinstance(prompt, msgspec.Raw) and len(memoryview(prompt)) > MAX_SCALAR_BYTES:
        lists = bytes(prompt)
        if lists.startswith(b"[") and only_ids(lists):
            return lists.count(b"[") - 1
    prompt = field_value(prompt)
    if isinstance(prompt, str):
        return 1
    if not isinstance(prompt, list | tuple) or not prompt:
        return 0
    return 1 if isinstance(prompt[0], int) else len(prompt)
