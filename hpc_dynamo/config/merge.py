"""Merge of engine options, in which `--max-model-len` and `max_model_len` are the same option."""

import json
from collections.abc import Mapping
from typing import Any


def parse_json(value: Any) -> Any:
    """Return the content of a text that is a JSON object or list; any other value unchanged."""
    if not (isinstance(value, str) and value[:1] in ("{", "[")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def merge_options(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings merged; `higher` overrides `lower`.

    Mappings below the same key are merged too, also those that are written as JSON.
    """
    pairs = {
        key: (parse_json(lower[key]), parse_json(higher[key])) for key in lower.keys() & higher
    }
    both = {
        key: merge_options(one, other)
        for key, (one, other) in pairs.items()
        if isinstance(one, Mapping) and isinstance(other, Mapping)
    }
    return {**lower, **higher, **both}


def with_names_of(options: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` with each name spelled as in `named`, if it is there."""
    names = {with_dashes(name): name for name in named}
    return {names.get(with_dashes(name), name): value for name, value in options.items()}


def with_dashes(name: str) -> str:
    """Return the name of an option as a command line has it, without the two dashes before it."""
    return name.replace("_", "-")
