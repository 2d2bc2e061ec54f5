"""Candidates for overrides: fields, groups of files, and their values, from the schema."""

from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hpc_dynamo.cli.completion.files import files
from hpc_dynamo.cli.conf_folders import conf_folders
from hpc_dynamo.cli.overrides.field_lookup import fields_of
from hpc_dynamo.config import Config


def candidates(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield fields down to the next dot, or the values of the field before the `=`."""
    name, is_, value = current.partition("=")
    if not is_:
        yield from _fields(name, before)
        return
    choices = [*_group(name, before), *_values(type_of(name.split(".")))]
    yield from ((f"{name}={choice}", "") for choice in choices)
    if not choices and type_of(name.split(".")) in (str, Path, Any):
        yield from files(f"{name}=", value)


def type_of(keys: Sequence[str]) -> Any:
    """Return the type of a field or a section by its dotted name; None if there is none."""
    found: Any = Config
    for key in keys:
        found = _plain(found)
        if get_origin(found) is dict:
            found = get_args(found)[1]
        elif is_dataclass(found) and isinstance(found, type):
            found = fields_of(found).get(key)
        else:
            return None
    return _plain(found)


def _plain(of: Any) -> Any:
    """Return X for `X | None`, else the type itself."""
    known = [each for each in get_args(of) if each is not type(None)]
    optional = type(None) in get_args(of) and len(known) == 1
    return known[0] if optional else of


def _fields(typed: str, before: Sequence[str]) -> Iterator[tuple[str, str]]:
    above = typed.rpartition(".")[0]
    section = type_of(above.split(".")) if above else Config
    if not (isinstance(section, type) and is_dataclass(section)):
        return
    for name, of in fields_of(section).items():
        full, plain = f"{above}.{name}".lstrip("."), _plain(of)
        is_section = isinstance(plain, type) and is_dataclass(plain)
        if is_section or get_origin(plain) is dict:
            yield f"{full}.", ""
        if (not is_section and get_origin(plain) is not dict) or any(_group(full, before)):
            yield f"{full}=", ""
    if not above:
        yield from ((f"{group}=", "") for group in ("recipe",))


def _group(name: str, before: Sequence[str]) -> list[str]:
    """Return the files of a group, also those of `--config-dir`."""
    given = next((before[at + 1] for at, w in enumerate(before[:-1]) if w == "--config-dir"), None)
    folders = conf_folders(Path(given) if given else None)
    return sorted({f.stem for folder in folders for f in (folder / name).glob("*.yaml")})


def _values(of: Any) -> list[str]:
    if of is bool:
        return ["true", "false"]
    if isinstance(of, type) and issubclass(of, Enum):
        return [str(member.value) for member in of]
    return [str(choice) for choice in get_args(of)] if get_origin(of) is Literal else []
