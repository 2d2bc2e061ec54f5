"""Old names of configuration fields, accepted with a warning for one version.

The schema has the old name of a field in its metadata. Files are read with old names replaced, so
that the rest of the reader only knows current names.
"""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_origin

from rich.markup import escape

from hpc_dynamo.cli.overrides.yaml_text import Document, Keys
from hpc_dynamo.cli.render.console import ERR
from hpc_dynamo.config import Config
from hpc_dynamo.config.schema.setting import own_fields

INTERPOLATION = re.compile(r"(?<=\$\{)\w+(?:\.\w+)+(?=\})")


@cache
def old_names(section: type) -> Mapping[str, str]:
    """Return the current name of each renamed field of a section, by its old name."""
    return {field.info.was: field.name for field in own_fields(section) if field.info.was}


@cache
def field_types(section: type) -> Mapping[str, Any]:
    """Return the type of each field of a section."""
    return {field.name: field.type for field in own_fields(section)}


def current_keys(keys: Keys) -> Keys:
    """Return the keys of a field with old names replaced. Unknown keys stay as they are."""
    section: Any = Config
    found = list[str]()
    for key in keys:
        if get_origin(section) is dict:  # the key is a name of the user's
            section = get_args(section)[1]
        elif is_dataclass(section) and isinstance(section, type):
            key = old_names(section).get(key, key)
            section = field_types(section).get(key)
        found.append(key)
    return tuple(found)


def current_name(name: str, place: str = "") -> str:
    """Return the current dotted name of a field; warns on stderr if `name` is an old one."""
    keys = tuple(name.split("."))
    if (current := current_keys(keys)) == keys:
        return name
    _warn(name, ".".join(current), place)
    return ".".join(current)


@cache
def _warn(old: str, new: str, place: str) -> None:
    """Print the warning, once for each name and place."""
    where = f"{place}: " if place else ""
    text = f"warning: {where}{old} is now {new}; the next version will not accept the old name"
    ERR.print(escape(text), highlight=False)


def with_current_names(document: Document, package: Keys) -> Document:
    """Return a file with old names of fields replaced, also in interpolations.

    `package` is the section that the content of the file belongs to.
    """
    lines = dict[Keys, int]()
    for keys, line in document.lines.items():
        full = (*package, *keys)
        current_name(".".join(full), f"{document.path}:{line}")
        lines[current_keys(full)[len(package) :]] = line
    return Document(document.path, _renamed(document.content, package), lines)


def _renamed(value: Any, at: Keys) -> Any:
    if isinstance(value, dict):
        pairs = ((key, (*at, key)) for key in value)
        return {current_keys(keys)[-1]: _renamed(value[key], keys) for key, keys in pairs}
    if isinstance(value, list):
        return [_renamed(each, at) for each in value]
    if isinstance(value, str):
        return INTERPOLATION.sub(lambda name: current_name(name[0]), value)
    return value
