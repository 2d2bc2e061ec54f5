"""Prompts of /v1/completions: texts or token ids, one or several. Ids need no tokenizer."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from hpc_dynamo.chat_templates import UnsupportedPrompt
from hpc_dynamo.preprocess.tokens import Tokens, UnknownTokens

Encode = Callable[[str, bool], Awaitable[Tokens]]
"""(text, whether to add special tokens around it) -> its tokens."""

ENGINE_ONLY_FIELDS = ("prompt_embeds", "suffix", "truncate_prompt_tokens")


async def completion_token_ids(
    body: Mapping[str, Any], encode: Encode
) -> list[Tokens] | UnknownTokens:
    """Return the token ids of each prompt of a body."""
    prompt, special = body.get("prompt"), bool(body.get("add_special_tokens", True))
    if any(body.get(name) is not None for name in ENGINE_ONLY_FIELDS):
        return UnknownTokens("prompt_embeds, suffix or truncate_prompt_tokens")
    single = isinstance(prompt, str) or (isinstance(prompt, list) and _are_ids(prompt))
    prompts = [prompt] if single else prompt
    if not isinstance(prompts, list) or not prompts:
        return UnknownTokens("prompt is neither text nor a list")
    try:
        return [await _tokens(each, special, encode) for each in prompts]
    except UnsupportedPrompt as e:
        return UnknownTokens(str(e))
    except (TypeError, OverflowError):
        return UnknownTokens("prompt is neither text nor token ids")


async def _tokens(prompt: object, special: bool, encode: Encode) -> Tokens:
    if isinstance(prompt, str):
        return await encode(prompt, special)
    if not isinstance(prompt, list):
        raise TypeError
    return Tokens.of(prompt)


def _are_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


_NO_TOKENIZER = "there is no tokenizer for text"


class TokenIdsOnly:
    """Replaces a Preprocessor if there is no tokenizer, or one that differs from the engine's.

    `reason` is one sentence with cause and effect; `hint` is what to try.
    """

    def __init__(self, reason: str = _NO_TOKENIZER, hint: str = "") -> None:
        self.reason, self.hint = reason, hint

    def __str__(self) -> str:
        return f"{self.reason} (try: {self.hint})" if self.hint else self.reason

    async def chat(self, body: Mapping[str, Any], max_tokens: int = 0) -> UnknownTokens:
        return UnknownTokens(_NO_TOKENIZER)

    async def completion(
        self, body: Mapping[str, Any], max_tokens: int = 0
    ) -> list[Tokens] | UnknownTokens:
        return await completion_token_ids(body, _reject_text)

    def limit_memory(self) -> bool:
        return False


async def _reject_text(text: str, special: bool) -> Tokens:
    raise UnsupportedPrompt(_NO_TOKENIZER)
