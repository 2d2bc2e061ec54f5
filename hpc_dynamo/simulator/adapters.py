"""LoRA adapters that change nothing but names: of answers, and of the blocks that hold them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.errors import ConfigError


def named(words: Sequence[str]) -> dict[str, str]:
    """Paths by name, from vLLM's --lora-modules. Raises ConfigError."""
    return dict(map(_named, words))


def _named(word: str) -> tuple[str, str]:
    if not word.startswith("{"):
        name, _, path = word.partition("=")
        return name, path
    try:
        told = msgspec.json.decode(word, type=dict[str, Any])
        return told["name"], told["path"]
    except (msgspec.DecodeError, KeyError) as e:
        hint = """--lora-modules NAME=PATH, or '{"name": "…", "path": "…"}'"""
        raise ConfigError(f"lora-modules: {word} is no adapter: {e}", hint=hint) from e
