"""Read YAML without losing the text of its scalars.

YAML 1.1 reads `12:00:00` as 43200, `0123` as 83 and `on` as true. Only the field defines the type,
and it is not known while a file is read. So a scalar without quotes that YAML would convert is
kept as `bytes` of its source text; `tree` converts it once its field is known. Quoted scalars are
`str`, and nulls are None.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpc_dynamo.cli.overrides.file_limits import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    too_deep,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.regular_file import read_regular_file

TAG = "tag:yaml.org,2002:"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")  # YAML 1.1 misses 1e3
CONVERTED = frozenset(f"{TAG}{kind}" for kind in ("bool", "int", "float"))
Keys = tuple[str, ...]


@dataclass
class Document:
    """Content of one YAML file, and the line of each of its keys, counted from 1."""

    path: Path | str
    content: dict[str, Any] = field(default_factory=dict)
    lines: dict[Keys, int] = field(default_factory=dict)


def read(path: Path) -> Document:
    """Read a file. Raises ConfigError naming the line if it is not a YAML mapping."""
    try:
        text = read_regular_file(path, MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e
    return parse(text, path)


def parse(text: str, path: Path | str) -> Document:
    """Parse YAML that is a mapping; `path` is named in errors. Raises ConfigError."""
    document = Document(path)
    try:
        node = yaml.compose(text, Loader=_BoundedLoader)
    except yaml.YAMLError as e:
        raise _broken(e, path) from e
    if node is not None:
        document.content = _Reader(document).mapping(node, ())
    return document


def _broken(error: Any, path: Path | str) -> ConfigError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"{path}:{mark.line + 1}" if mark else f"{path}"
    return ConfigError(f"{where}: not YAML: {problem or error}", hint="quote a value with signs")


class _BoundedLoader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no type information
    """Composes nodes up to MAX_DEPTH. Raises YAMLError beyond it: PyYAML would first need minutes,
    then the whole stack."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and those in it."""
        if self._depth == MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=too_deep(), problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Reader:
    """Converts YAML's nodes to Python's values."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._depth = self._values = 0

    def mapping(self, node: Any, at: Keys) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, "must be a mapping of names to values")
        with self._within_limits(node):
            return self._mapping(node, at)

    def _mapping(self, node: Any, at: Keys) -> dict[str, Any]:
        found = dict[str, Any]()
        merged = dict[str, Any]()
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                merged = {**self._merge(value, at), **merged}
                continue
            name = self._name(key)
            if name in found:
                raise self._error(key, f"{name} is there twice")
            self.document.lines[*at, name] = key.start_mark.line + 1
            found[name] = self.value(value, (*at, name))
        return merged | found

    def _merge(self, node: Any, at: Keys) -> dict[str, Any]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged = dict[str, Any]()
        for each in nodes:
            merged = self.mapping(each, at) | merged
        return merged

    def _name(self, node: Any) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a name must be a text")
        return str(node.value)

    def value(self, node: Any, at: Keys) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            names = at == ("defaults",)  # Hydra's list, which contains only names
            with self._within_limits(node):
                return [_as_names(v) if names else v for v in self._items(node, at)]
        plain, text = node.style is None, str(node.value)
        if plain and node.tag == f"{TAG}null":
            return None
        if plain and (node.tag in CONVERTED or NUMBER.fullmatch(text)):
            return text.encode()
        return text

    def _items(self, node: Any, at: Keys) -> Iterator[Any]:
        return (self.value(each, at) for each in node.value)

    @contextmanager
    def _within_limits(self, node: Any) -> Iterator[None]:
        """Count a mapping or a list with its values, and its depth. An alias stands for a copy of
        its node, which may contain itself. Raises ConfigError."""
        self._depth += 1
        self._values += 1 + len(node.value)
        if self._depth > MAX_DEPTH:
            raise self._error(node, too_deep())
        if self._values > MAX_VALUES:
            raise self._error(node, f"more than {MAX_VALUES} values, each alias (*NAME) replaced")
        yield
        self._depth -= 1

    def _error(self, node: Any, what: str) -> ConfigError:
        return ConfigError(f"{self.document.path}:{node.start_mark.line + 1}: {what}")


def _as_names(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _as_names(value) for key, value in item.items()}
    return item.decode() if isinstance(item, bytes) else item


def dump(content: dict[str, Any]) -> str:
    """Return YAML of plain values, which `read` and Hydra read back unchanged."""
    return str(
        yaml.dump(
            _escaped(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000
        )
    )


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # yaml has no type information
    """Writes texts with any line break in double quotes, so that they can be indented."""


def _represent_text(dumper: Any, text: str) -> Any:
    style = '"' if len(f"{text}.".splitlines()) > 1 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _escaped(value: Any) -> Any:
    """Escape `${`, and backslashes before it, as text: files have interpolations."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case dict():
            return {key: _escaped(each) for key, each in value.items()}
        case list():
            return [_escaped(each) for each in value]
        case _:
            return value
