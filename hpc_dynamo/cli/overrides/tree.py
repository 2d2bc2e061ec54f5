"""Build the configuration tree: defaults, then files, then command-line arguments."""

import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

import msgspec

from hpc_dynamo.cli.overrides import field_lookup, files, values
from hpc_dynamo.cli.overrides.arguments import Arguments, Assignment, Removal
from hpc_dynamo.cli.overrides.field_lookup import EngineOption, Field, JsonValue
from hpc_dynamo.config import Config
from hpc_dynamo.config.paths import expand_home, is_path
from hpc_dynamo.errors import ConfigError

Keys = tuple[str, ...]
Line = Callable[[Keys], str]  # file and line that set a field
MODELS = "models"  # each model is composed separately: its content stays as it was read

QUOTED = re.compile(r"(?P<quote>['\"])(?P<inner>(?:(?!(?P=quote))[^\\]|\\.)*)(?P=quote)", re.DOTALL)


def build(folders: files.Folders, words: Arguments, beneath: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of a configuration, typed and resolved. `beneath` overrides files; `words`
    override both. Raises ConfigError naming the field, and the file and line that set it."""
    from hpc_dynamo.cli.overrides import hydra_files

    tree, hidden = _defaults(), _Hidden()
    merge(tree, typed(hydra_files.composed(folders, words.choices), Config, (), folders.line))
    merge(tree, hidden.away(typed(beneath, Config, (), folders.line)))
    for change in words.changes:
        if isinstance(change, Removal):
            _remove(tree, change)
        else:
            _assign(tree, change, hidden)
    tree = typed(hydra_files.resolved(tree), Config, (), folders.line)
    shown: dict[str, Any] = _with_homes(hidden.back(tree), "")
    return shown


def _defaults() -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(Config())
    return tree


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Merge `values` into `into`, key by key; mutates `into`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def _assign(tree: dict[str, Any], change: Assignment, hidden: "_Hidden") -> None:
    value = _value(change.field, change.text)
    *above, last = change.field.keys
    for key in above:
        if not isinstance(tree.get(key), dict):
            tree[key] = _object(tree.get(key)) or {}
        tree = tree[key]
    if isinstance(tree.get(last), dict):  # an object in JSON adds to that of a file
        value = _object(value) or value
    merge(tree, {last: hidden.away(value)})


def _object(value: Any) -> dict[str, Any] | None:
    """Return the content of a text that is an object in JSON; None for any other value."""
    content = values.json_value(value) if isinstance(value, str) else None
    return content if isinstance(content, dict) else None


def _value(field: Field, text: str) -> Any:
    """Return the value of an override's text."""
    if _is_mapping(field.type):
        content = values.mapping(text)
        if content is None:
            raise values.wrong(text, field.type, field.name)
        return _typed(content, field.type, field.keys, lambda keys: "")
    if is_path(field.name):
        text = _unquoted(text)
    return values.from_text(text, field.type, field.name)


def _is_mapping(of: Any) -> bool:
    return is_dataclass(of) or get_origin(of) is dict


def _unquoted(path: str) -> str:
    """Return a path without quotes around it, which older versions asked for."""
    match = QUOTED.fullmatch(path)
    return match["inner"].replace(f"\\{match['quote']}", match["quote"]) if match else path


def _remove(tree: dict[str, Any], change: Removal) -> None:
    """Remove a key from a mapping, or reset a field to its default."""
    *above, last = change.keys
    default: Any = _defaults()
    for key in above:
        tree = tree.get(key, {})
        default = default.get(key, {})
    if last in default:
        tree[last] = default[last]
    elif last in tree:
        del tree[last]
    else:
        name = ".".join(change.keys)
        raise ConfigError(f"{change.word}: {name} is not set", hint="hpc-dynamo plan --show")


def typed(content: Mapping[str, Any], of: Any, keys: Keys, line: Line) -> dict[str, Any]:
    """Return a section's content with each value converted to its field's type. `bytes` are
    converted; strings with an interpolation stay until they are resolved. Raises ConfigError."""
    known = field_lookup.fields_of(of)
    for name in content:
        if name not in known:
            place = line((*keys, name))
            text = _scalar(content[name]) if place else None
            raise _located(field_lookup.unknown_field(keys, name, known, text), place)
    return {name: _typed(each, known[name], (*keys, name), line) for name, each in content.items()}


def _typed(value: Any, of: Any, keys: Keys, line: Line) -> Any:
    of, may_be_unset = values.optional(of)
    if (value is None and may_be_unset) or keys == (MODELS,):
        return value
    if isinstance(value, str) and "${" in value:
        return value
    if of is EngineOption or of is JsonValue:
        return values.free(value, of)
    if isinstance(value, Mapping) and is_dataclass(of):
        return typed(value, of, keys, line)
    if isinstance(value, Mapping) and get_origin(of) is dict:
        return _entries(value, get_args(of)[1], keys, line)
    try:
        if value is None and len(keys) > 1 and keys[-2] == "extra":
            raise _no_value(keys)
        return _leaf(value, of, ".".join(keys))
    except ConfigError as e:
        raise _located(e, line(keys)) from e


def _entries(value: Mapping[str, Any], of: Any, keys: Keys, line: Line) -> dict[str, Any]:
    of = field_lookup.entry_type(keys[-1]) if of is Any else of
    return {name: _typed(each, of, (*keys, name), line) for name, each in value.items()}


def _leaf(value: Any, of: Any, name: str) -> Any:
    """Return the converted value of a leaf. Raises ConfigError."""
    if get_origin(of) is tuple and isinstance(value, list):
        return [_leaf(each, str, name) for each in value]
    if _is_mapping(of) or get_origin(of) is tuple:
        raise values.wrong(_shown(value), of, name)
    if isinstance(value, bytes | str):
        return values.from_text(_shown(value), of, name)
    if of is str and isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (of is int and whole) or (of is float and (whole or isinstance(value, float))):
        return value
    if of is bool and isinstance(value, bool):
        return value
    raise values.wrong(value, of, name)


def _shown(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _scalar(value: Any) -> str:
    """Return a value of a file as it was written there, as far as it is known."""
    return "" if value is None else str(_shown(value))


def _no_value(keys: Keys) -> ConfigError:
    """Return the error for an option of sbatch without a value."""
    hint = f"`{keys[-1]}: true` for a flag, `{keys[-1]}: false` to leave the option out"
    return ConfigError(f"{'.'.join(keys)} has no value", hint=hint)


def _located(error: ConfigError, line: str) -> ConfigError:
    return ConfigError(f"{error.message} ({line})" if line else error.message, hint=error.hint)


def _with_homes(value: Any, name: str) -> Any:
    """Return the value with `~` expanded in fields that are paths."""
    if isinstance(value, str):
        return expand_home(value, name) if is_path(name) else value
    if isinstance(value, list):
        return [_with_homes(each, f"{name}.{at}") for at, each in enumerate(value)]
    if isinstance(value, dict) and name != MODELS:
        return {k: _with_homes(each, f"{name}.{k}".lstrip(".")) for k, each in value.items()}
    return value


class _Hidden:
    """Texts with `${` that must not be resolved: a token replaces each during resolution.

    A token contains NUL, which no argument of a program can contain.
    """

    def __init__(self) -> None:
        self._texts = list[str]()

    def away(self, value: Any) -> Any:
        """Return the value with its texts replaced by tokens."""
        if isinstance(value, str) and "${" in value:
            self._texts.append(value)
            return f"\0{len(self._texts) - 1}\0"
        return _each(value, self.away)

    def back(self, value: Any) -> Any:
        """Return the value with its texts restored, also if a token became part of another text."""
        if isinstance(value, str):
            return re.sub("\0([0-9]+)\0", lambda token: self._texts[int(token[1])], value)
        return _each(value, self.back)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(each) for key, each in value.items()}
    return [change(each) for each in value] if isinstance(value, list) else value
