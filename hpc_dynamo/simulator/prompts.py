"""Conversion of prompts to token ids, with the errors of vLLM 0.32 (`vllm/renderers/params.py`)."""

from collections.abc import Sequence

from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.api_error import RequestRejected

PromptField = str | list[str | int | list[int]]


def from_text(text: str, limit: int) -> list[int]:
    """Return the ids of a text of at most `limit` tokens. Raises RequestRejected."""
    _check_characters(len(text), limit)
    tokens = tokenizer.encode(text)
    _check_length(min(len(tokens), limit + 1), limit)  # vLLM stops tokenizing there
    return tokens


def from_ids(tokens: list[int], limit: int, param: str) -> list[int]:
    """Check and return token ids. Raises RequestRejected."""
    if not tokens:
        raise RequestRejected("The decoder prompt cannot be empty", param)
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < tokenizer.VOCABULARY:
            raise RequestRejected(f"Token id {token} is out of vocabulary", param)
    _check_length(len(tokens), limit)
    return tokens


def from_chat(messages: Sequence[tuple[str, str]], limit: int) -> list[int]:
    """Return the ids of (role, content) pairs, ready to generate. Raises RequestRejected."""
    _check_characters(sum(len(text) for _, text in messages), limit)
    tokens = tokenizer.render(messages)
    _check_length(min(len(tokens), limit + 1), limit)
    return tokens


def from_field(value: PromptField, limit: int, param: str) -> list[list[int]]:
    """Return the ids of each prompt of a request field. Raises RequestRejected.

    The field is a text, a list of token ids, or a list of texts or of lists of ids.
    """
    items = [value] if isinstance(value, str) else value
    texts = [item for item in items if isinstance(item, str)]
    lists = [item for item in items if isinstance(item, list)]
    ids = [item for item in items if isinstance(item, int)]
    if len(items) not in (len(texts), len(ids), len(lists)):
        what = f"{param} is a text, a list of token ids, or a list of one of these"
        raise RequestRejected(what, param)
    if "" in texts:
        what = f"Either {param} or prompt_embeds must be provided and non-empty."
        raise RequestRejected(what, param)
    if texts:
        return [from_text(text, limit) for text in texts]
    return [from_ids(each, limit, param) for each in lists or [ids]]


def _check_characters(count: int, limit: int) -> None:
    """Reject a prompt that is certainly too long without tokenizing it."""
    most = limit * tokenizer.MAX_TOKEN_CHARACTERS
    if count > most:
        size = f"{count} characters (more than {most} characters, which is the upper bound for "
        raise _too_long(f"{size}{limit} input tokens)", limit, "input_text")


def _check_length(count: int, limit: int) -> None:
    if count > limit:
        size = f"{'at least ' if count == limit + 1 else ''}{count} input tokens, which exceeds"
        raise _too_long(f"{size} this limit even without any output tokens", limit, "input_tokens")


def _too_long(size: str, limit: int, param: str) -> RequestRejected:
    return RequestRejected(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains "
        f"{size}. Please reduce the length of the input prompt.",
        param=param,
    )
