"""Texts about a field for people: type, limits and default. Derived from type and metadata."""

from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_origin

from hpc_dynamo.config.schema.setting import SchemaField

NAMES = {bool: "true or false", int: "integer", float: "number", str: "text"}


def type_name(of: Any) -> str:
    """Return the name of a field's type as a user knows it."""
    if NoneType in get_args(of):
        return f"{type_name(get_args(of)[0])} or null"
    if get_origin(of) is tuple:
        return "list"
    if get_origin(of) is dict:
        return "mapping"
    return NAMES.get(of, "choice")


def limits(field: SchemaField) -> str:
    """Return the unit and the bounds of a field, or the values that it accepts."""
    of = next((each for each in get_args(field.type) if each is not NoneType), field.type)
    info = field.info
    choices = of if isinstance(of, type) and issubclass(of, StrEnum) else info.choices
    if choices:
        return ", ".join(choices)
    return ", ".join(text for text in (info.unit, info.bounds) if text)


def default_text(default: Any) -> str:
    """Return the default of a field as an override has it; empty for an empty value."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if isinstance(default, int) else str(default or "")
