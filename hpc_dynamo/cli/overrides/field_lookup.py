"""Find a field of the configuration, and its type, by its dotted name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from hpc_dynamo.cli.overrides.renamed import current_name
from hpc_dynamo.config import Config
from hpc_dynamo.config.sbatch_options import elsewhere, elsewhere_in_file
from hpc_dynamo.config.schema.setting import schema_fields
from hpc_dynamo.errors import ConfigError, unknown_field_error


class EngineOption:
    """Type of a free option of an engine: its text goes to the engine's command line."""


class JsonValue:
    """Type of a free value that becomes JSON: in a request body, or inside an option."""


ENGINE_OPTIONS = "args"  # the field of this name holds options of a command line


@dataclass(frozen=True)
class Field:
    """Field of the configuration: its place in the tree and the type of its value."""

    keys: tuple[str, ...]
    type: Any

    @property
    def name(self) -> str:
        """Return the dotted name, as it is written in an override."""
        return ".".join(self.keys)


@cache
def fields_of(section: type) -> Mapping[str, Any]:
    """Return the names and types of a section's fields."""
    return get_type_hints(section)


def field(name: str) -> Field:
    """Return the field with this dotted name. Raises ConfigError if there is none.

    In a mapping of texts (`engine.env`, `model.lora`) the rest of the name is one key, dots
    included; in a mapping of anything each dot opens a mapping.
    """
    section: Any = Config
    name = current_name(name)
    parts = name.split(".")
    for depth, part in enumerate(parts):
        known, before, rest = fields_of(section), tuple(parts[:depth]), parts[depth + 1 :]
        if part not in known:
            raise unknown_field(before, part, known)
        keys, section = (*before, part), known[part]
        if rest and get_origin(section) is dict:
            return _entry(keys, get_args(section)[1], rest)
        if rest and not is_dataclass(section):
            hint = f"{'.'.join(keys)} is a value"
            raise ConfigError(f"{name} is not a field", hint=hint)
    return Field(tuple(parts), section)


def unknown_field(
    keys: tuple[str, ...], name: str, known: Iterable[str], in_file: str | None = None
) -> ConfigError:
    """Return the error for a field that the section at `keys` does not have. It names the right
    place for an option of sbatch. `in_file` is the text of its value if a file sets it."""
    path = ".".join(keys)
    place = elsewhere(name) if in_file is None else elsewhere_in_file(name, in_file)
    if keys == ("cluster", "slurm") and place:
        return ConfigError(f"{path}.{name} is not a field", hint=place)
    return unknown_field_error(path, name, known)


def _entry(keys: tuple[str, ...], of: Any, rest: list[str]) -> Field:
    """Return an entry of the mapping at `keys`."""
    if not all(rest):
        name = ".".join((*keys, *rest))
        raise ConfigError(f"{name} has an empty name", hint=f"{'.'.join(keys)}.NAME=VALUE")
    if of is Any:
        return Field((*keys, *rest), entry_type(keys[-1]) if len(rest) == 1 else JsonValue)
    if not isinstance(of, type) or not is_dataclass(of):
        return Field((*keys, ".".join(rest)), of)
    if len(rest) == 1:
        return Field((*keys, rest[0]), of)
    own, known = rest[1], fields_of(of)
    if own not in known:
        raise unknown_field_error(".".join((*keys, rest[0])), own, known)
    place = (*keys, rest[0], own)
    if get_origin(known[own]) is dict and len(rest) > 2:
        return _entry(place, get_args(known[own])[1], rest[2:])
    if len(rest) > 2:
        raise ConfigError(f"{'.'.join((*keys, *rest))} is not a field", hint=f"{own} is a value")
    return Field(place, known[own])


def entry_type(mapping: str) -> type:
    """Return the type of values in a mapping of anything, by the mapping's own name."""
    return EngineOption if mapping == ENGINE_OPTIONS else JsonValue


def section_names() -> frozenset[str]:
    """Return fields of the configuration that are sections, which `conf/` has groups for."""
    return frozenset(name for name, of in fields_of(Config).items() if is_dataclass(of))


@cache
def leaves() -> Mapping[str, str]:
    """Return the dotted names of all fields that are not sections, each with the last part of its
    old name, if it was renamed."""
    return {
        field.name: field.info.was
        for field in schema_fields(Config)
        if not is_dataclass(field.type) and "*" not in field.name
    }
