"""The configuration as YAML with a comment above each field: help, unit, bounds, default."""

import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import msgspec

from hpc_dynamo.cli.overrides.yaml_text import dump
from hpc_dynamo.config import Config
from hpc_dynamo.config.schema.describe import default_text, limits
from hpc_dynamo.config.schema.setting import own_fields

INDENT = "  "
WIDTH = 100


def commented(config: Config) -> str:
    """Return YAML that can be read back as a configuration file."""
    return "".join(_section(config, ""))


def _section(section: Any, indent: str) -> Iterator[str]:
    for field in own_fields(type(section)):
        name, value = field.name, getattr(section, field.name)
        if is_dataclass(value):
            yield _comment(field.info.help, indent) + f"{indent}{name}:\n"
            yield from _section(value, indent + INDENT)
        else:
            default = default_text(field.default) if value != field.default else ""
            facts = limits(field), default and f"default {default}"
            about = "; ".join(fact for fact in facts if fact)
            yield _comment(f"{field.info.help} ({about})" if about else field.info.help, indent)
            yield textwrap.indent(dump({name: msgspec.to_builtins(value)}), indent)


def _comment(text: str, indent: str) -> str:
    prefix = f"{indent}# "
    lines = textwrap.wrap(text, WIDTH, initial_indent=prefix, subsequent_indent=prefix)
    return "\n".join(lines) + "\n"
