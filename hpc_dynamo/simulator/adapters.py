"""LoRA adapters. They change only names: of the model in responses, and of KV blocks."""

from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.errors import ConfigError


def parse_lora_modules(values: Sequence[str]) -> dict[str, str]:
    """Return paths by adapter name, from vLLM's --lora-modules. Raises ConfigError."""
    return dict(map(_parse, values))


def _parse(value: str) -> tuple[str, str]:
    if not value.startswith("{"):
        name, _, path = value.partition("=")
        return name, path
    try:
        fields = msgspec.json.decode(value, type=dict[str, Any])
        return fields["name"], fields["path"]
    except (msgspec.DecodeError, KeyError) as e:
        hint = """--lora-modules NAME=PATH, or '{"name": "…", "path": "…"}'"""
        raise ConfigError(f"lora-modules: {value} is not an adapter: {e}", hint=hint) from e
