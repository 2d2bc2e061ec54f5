"""Reference page of all configuration fields, generated from the schema."""

from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from hpc_dynamo.config import Config
from hpc_dynamo.config.schema.describe import default_text, limits, type_name
from hpc_dynamo.config.schema.setting import SchemaField, own_fields, schema_fields

PAGE = "configuration.md"
INTRODUCTION = """
# Configuration fields

Set a field with an override `FIELD=VALUE`, or in a file of `--config-dir`: see
[Configuration](../guides/configuration.md). `hpc-dynamo plan --show` prints the value of each field
with these descriptions. Files in `conf/` change some defaults, such as those of an engine.
"""
OLD_NAMES = """
## Old names

This version accepts these names of the previous version and prints a warning. The next version
refuses them.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for section, (names, about) in _sections().items():
        title = ", ".join(names) or "Run"
        parts += [f"## {title}\n", f"{about}\n", _table(own_fields(section))]
    return "\n".join([*parts, OLD_NAMES, _old_names()])


def _sections() -> dict[type, tuple[list[str], str]]:
    """Return the classes of the schema, each with the names of its sections and its help."""
    found: dict[type, tuple[list[str], str]] = {Config: ([""], _help(Config))}
    for field in schema_fields(Config):
        of = _class(field.type)
        if of is None:
            continue
        name = field.name if is_dataclass(field.type) else f"{field.name}.NAME"
        names, _ = found.setdefault(of, ([], _help(of)))
        names += [name] if "*" not in name else []
    return found


def _help(section: type) -> str:
    return " ".join((section.__doc__ or "").split())


def _class(of: Any) -> type | None:
    """Return the class of a section, or of the entries of a mapping of sections."""
    entry = get_args(of)[1] if get_origin(of) is dict else of
    return entry if isinstance(entry, type) and is_dataclass(entry) else None


def _table(fields: Iterable[SchemaField]) -> str:
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        if _class(field.type) is not None:
            continue
        default = f"`{text}`" if (text := default_text(field.default)) else ""
        facts = f" ({limits(field)})" if limits(field) else ""
        row = (f"`{field.name}`", type_name(field.type) + facts, default, field.info.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(rows) + "\n"


def _old_names() -> str:
    rows = ["| old name | current name |", "|---|---|"]
    for field in schema_fields(Config):
        if field.info.was and "*" not in field.name:
            above = field.name.rpartition(".")[0]
            old = f"{above}.{field.info.was}".lstrip(".")
            rows.append(f"| `{old}` | `{field.name}` |")
    return "\n".join(rows)
