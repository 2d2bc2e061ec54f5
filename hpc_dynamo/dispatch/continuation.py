"""The request that continues a stream on another worker, and why some cannot be continued.

The output so far becomes the end of the prompt, as token ids of /v1/completions. Engines know
nothing of it. Only fields that mean the same there are accepted: an unknown field may depend on
the output so far, as a grammar or a penalty does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_dynamo.dispatch.execution import LIMITS, count
from hpc_dynamo.dispatch.obstacles import NotContinuable, Obstacle
from hpc_dynamo.dispatch.partial_answer import PartialAnswer
from hpc_dynamo.errors import RequestFailed

Json = dict[str, Any]

# Fields that are copied: they mean the same in both paths, and do not depend on earlier output.
COPIED = frozenset(
    {
        "allowed_token_ids", "bad_words", "cache_salt", "ignore_eos", "include_stop_str_in_output",
        "logit_bias", "min_p", "min_tokens", "model", "no_stop_trim", "priority",
        "repetition_penalty", "return_token_ids", "return_tokens_as_token_ids", "seed",
        "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids", "stream",
        "stream_options", "temperature", "top_k", "top_p", "user",
    }
)  # fmt: skip

# Fields whose effect is in the prompt's token ids, or that are converted.
CONVERTED = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "chat_template_kwargs",
        "continue_final_message", "documents", "logprobs", "max_completion_tokens", "max_tokens",
        "messages", "prompt", "reasoning_effort", "tools", "top_logprobs",
    }
)  # fmt: skip

IGNORED = frozenset({"metadata", "parallel_tool_calls", "service_tier", "store"})

# Fields that are accepted with these values, which have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "length_penalty": (1,), "n": (1,),
    "presence_penalty": (0,), "response_format": ({"type": "text"},), "suffix": ("",),
    "tool_choice": ("none", "auto"), "use_beam_search": (False,),
}  # fmt: skip

LAST_WORD = re.compile(r"\s*\S*\Z")
MAX_REPEATED_CHARS = 64
# The time to compare stop strings with a text grows with their square.
MAX_STOP_CHARS = 10_000


class ContinuationDiffers(RequestFailed):
    """The continuation does not repeat the last word: other numerics led to another token."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream cannot be continued: {reason}", status=502)


@dataclass(frozen=True)
class Cut:
    """Start of the continuation: after `kept`. It has to repeat `repeated` first.

    Both together are the text that the client has.
    """

    kept: str
    repeated: str = ""


def check_continuable(body: Json) -> None:
    """Raises NotContinuable for a body with a field that a continuation could not respect."""
    for name, value in body.items():
        if value is None or name in COPIED or name in CONVERTED or name in IGNORED:
            continue
        if value not in NEUTRAL.get(name, ()):
            raise NotContinuable(Obstacle.field, f"the request sets {name}")
    if body.get("seed") is not None and not is_greedy(body):
        raise NotContinuable(Obstacle.seed, "the request sets seed, and a temperature other than 0")
    if body.get("tools") and body.get("tool_choice") != "none":
        raise NotContinuable(Obstacle.tools, "the request has tools")
    if body.get("stop") and (body.get("return_token_ids") or _wants_logprobs(body)):
        raise NotContinuable(Obstacle.stop_and_tokens, "it has stop strings and wants tokens")
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            raise NotContinuable(Obstacle.content, "the messages are not only text")


def cut_at(body: Json, answer: PartialAnswer, *, repeat: bool) -> Cut:
    """Return where to continue. Raises NotContinuable.

    A text that ends inside a word, or after a space, may have other token ids than the same text
    with its continuation. Engines also hold back text that may become a stop string. Therefore a
    greedy output repeats its last word, and enough text for a stop string that began before.
    With `repeat` False, and if tokens were sent, nothing is repeated.
    """
    if answer.parsed:
        raise NotContinuable(Obstacle.parsed, f"the engine has parsed its output ({answer.parsed})")
    stop, text = body.get("stop") or [], answer.text
    stops = [stop] if isinstance(stop, str) else stop
    if sum(map(len, stops)) > MAX_STOP_CHARS:
        raise NotContinuable(Obstacle.stop_begun, "its stop strings are long")
    if repeat and is_greedy(body) and not (answer.logprobs or answer.token_ids):
        kept = _without_last_word(text[: len(text) - max(map(len, stops), default=1) + 1])
        return Cut(kept, text[len(kept) :])
    if any(text.endswith(each[:size]) for each in stops for size in range(1, len(each))):
        raise NotContinuable(Obstacle.stop_begun, "the text may end with part of a stop string")
    return Cut(text)


def _without_last_word(text: str) -> str:
    """Return the text up to the space before its last word, or all of it if that is long."""
    last = text[-MAX_REPEATED_CHARS:]
    kept = LAST_WORD.sub("", last)
    return text[: len(text) - len(last) + len(kept)] if kept or last == text else text


def continuation_body(
    body: Json, prompt: Sequence[int], output: Sequence[int], context_tokens: int
) -> Json:
    """Return the body for /v1/completions; its `max_tokens` may be 0 or less.

    `body` is that of a chat or a completion. `output` are the token ids that the client has;
    `context_tokens` is the model's limit, or 0.
    """
    completion = "prompt" in body
    result = {name: value for name, value in body.items() if name in COPIED}
    result["prompt"] = [*prompt, *output]
    limit = next((count(body, name) for name in LIMITS if body.get(name) is not None), None)
    if limit is not None:
        result["max_tokens"] = limit - len(output)
    elif completion and "max_tokens" not in body and len(output) <= 16:
        result["max_tokens"] = 16 - len(output)  # OpenAI's default
    else:
        rest = context_tokens - len(prompt) - len(output)
        result["max_tokens"] = rest if context_tokens else None
    if body.get("min_tokens"):
        result["min_tokens"] = max(0, count(body, "min_tokens") - len(output))
    if completion and body.get("logprobs") is not None:
        result["logprobs"] = body["logprobs"]
    elif body.get("logprobs"):
        result["logprobs"] = body.get("top_logprobs") or 0
    return result


def is_greedy(body: Json) -> bool:
    return body.get("temperature") == 0


def _wants_logprobs(body: Json) -> bool:
    return body.get("logprobs") not in (None, False)
