"""LoRA adapters. They change only names: of the model in responses, and of KV blocks."""

from collections.abc import Sequence

import msgspec

from hpc_dynamo.errors import ConfigError


class LoraModule(msgspec.Struct):
    """A value of vLLM's --lora-modules. Other fields are ignored."""

    name: str
    path: str


def parse_lora_modules(values: Sequence[str]) -> dict[str, str]:
    """Return paths by adapter name. Raises ConfigError."""
    try:
        modules = [msgspec.json.decode(value, type=LoraModule) for value in values]
    except msgspec.DecodeError as e:
        hint = """--lora-modules '{"name": "…", "path": "…"}'"""
        raise ConfigError(f"lora-modules: {e}", hint=hint) from e
    return {module.name: module.path for module in modules}
