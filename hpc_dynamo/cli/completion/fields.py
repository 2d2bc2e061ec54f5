"""Candidates for overrides: fields, groups of files, and their values, from the schema."""

from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from hpc_dynamo.cli.completion.files import files
from hpc_dynamo.cli.conf_folders import conf_folders
from hpc_dynamo.config import Config
from hpc_dynamo.config.schema.setting import SchemaField, own_fields

ROOT_GROUPS = ("recipe",)  # groups of files that are no section


def candidates(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield fields down to the next dot, or the values of the field before the `=`."""
    name, is_, value = current.partition("=")
    if not is_:
        yield from _fields(name, before)
        return
    field = find_field(name)
    choices = [*_group(name, before), *(_values(field) if field else ())]
    yield from ((f"{name}={choice}", "") for choice in choices)
    if field and not choices and str in (field.type, *get_args(field.type)):
        yield from files(f"{name}=", value)


def find_field(name: str) -> SchemaField | None:
    """Return the field or section with a dotted name; None if there is none."""
    above, _, last = name.rpartition(".")
    section = _section(above)
    known = own_fields(section) if section else ()
    return next((field for field in known if field.name == last), None)


def _section(name: str) -> type | None:
    """Return the class of a section, or of an entry of a mapping of sections."""
    found: Any = Config
    for key in filter(None, name.split(".")):
        if get_origin(found) is dict:
            found = get_args(found)[1]
        elif is_dataclass(found) and isinstance(found, type):
            found = next((field.type for field in own_fields(found) if field.name == key), None)
    return found if is_dataclass(found) and isinstance(found, type) else None


def _fields(typed: str, before: Sequence[str]) -> Iterator[tuple[str, str]]:
    above = typed.rpartition(".")[0]
    section = _section(above)
    for field in own_fields(section) if section else ():
        name = f"{above}.{field.name}".lstrip(".")
        has_fields = is_dataclass(field.type) or get_origin(field.type) is dict
        if has_fields:
            yield f"{name}.", field.info.help
        if not has_fields or any(_group(name, before)):
            yield f"{name}=", field.info.help
    if not above:
        yield from ((f"{group}=", "") for group in ROOT_GROUPS)


def _group(name: str, before: Sequence[str]) -> list[str]:
    """Return the files of a group, also those of `--config-dir`."""
    given = next((before[at + 1] for at, w in enumerate(before[:-1]) if w == "--config-dir"), None)
    folders = conf_folders(Path(given) if given else None)
    return sorted({f.stem for folder in folders for f in (folder / name).glob("*.yaml")})


def _values(field: SchemaField) -> Sequence[str]:
    if field.type is bool:
        return ["true", "false"]
    for of in (field.type, *get_args(field.type)):
        if isinstance(of, type) and issubclass(of, Enum):
            return [str(member.value) for member in of]
    return field.info.choices
