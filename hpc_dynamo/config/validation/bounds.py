"""Check of values against the bounds and choices in the metadata of their fields."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from hpc_dynamo.config.schema.setting import SchemaField, own_fields
from hpc_dynamo.errors import ConfigError


def check_bounds(section: Any, above: str = "") -> None:
    """Check all fields of a section and of the sections below. Raises ConfigError."""
    for field in own_fields(type(section)):
        name, value = f"{above}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            check_bounds(value, f"{name}.")
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                if is_dataclass(entry):
                    check_bounds(entry, f"{name}.{key}.")
        else:
            _check(name, value, field)


def _check(name: str, value: Any, field: SchemaField) -> None:
    info = field.info
    if info.choices and value not in info.choices:
        hint = f"one of {', '.join(info.choices)}"
        raise ConfigError(f"{name}={value} is not known", hint=hint)
    if isinstance(value, int | float) and not info.contains(value):
        example = field.default if field.default is not None else f"{info.ge or 1:g}"
        raise ConfigError(f"{name}={value} must be {info.bounds}", hint=f"{name}={example}")
