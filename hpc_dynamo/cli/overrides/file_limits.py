"""Limits of configuration files, which another author may have written.

A few lines can stand for gigabytes: aliases of lists of aliases, or `${...}` of texts of `${...}`.
"""

import re
from collections.abc import Iterator
from typing import Any

from hpc_dynamo.errors import ConfigError

# Size of a file. PyYAML reads about 100 KB per second.
MAX_BYTES = 256 << 10
MAX_DEPTH = 32  # mappings and lists inside of each other
# Values in a file with its aliases replaced, and in a configuration with its references replaced.
MAX_VALUES = 20_000
CHARACTERS = 32  # length of text that counts as one value
REFERENCE = re.compile(r"\$\{([^${}]*)\}")
NESTED = re.compile(r"\$\{[^{}:]*\$\{")


def too_deep() -> str:
    return f"more than {MAX_DEPTH} mappings and lists inside of each other"


def require_bounded_references(tree: dict[str, Any]) -> None:
    """Raises ConfigError if the `${...}` of a tree stand for more than MAX_VALUES values."""
    _ReferenceCounter(tree).count(tree, ())


class _ReferenceCounter:
    """Counts the values that OmegaConf creates when it replaces all references."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree, self._counts = tree, dict[tuple[str, ...], int]()

    def count(self, value: Any, at: tuple[str, ...]) -> int:
        """Return the values that `value`, at these keys, stands for. A cycle counts once: OmegaConf
        reports it. A long text counts as several values."""
        if at in self._counts:
            return self._counts[at]
        self._counts[at] = 1
        own = 1 + len(value) // CHARACTERS if isinstance(value, str) else 1
        total = own + sum(self.count(each, keys) for each, keys in self._parts(value, at))
        if total > MAX_VALUES:
            what = f"{'.'.join(at) or 'the configuration'}: its ${{...}} stand for too much"
            raise ConfigError(what, hint="write values in place of references to long values")
        self._counts[at] = total
        return total

    def _parts(self, value: Any, at: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
        match value:
            case dict():
                yield from ((each, (*at, str(key))) for key, each in value.items())
            case list():
                yield from ((each, (*at, str(index))) for index, each in enumerate(value))
            case str() if NESTED.search(value):
                what = f"{'.'.join(at)}: the name in ${{...}} has another ${{...}}"
                raise ConfigError(what, hint="write the whole name of the field")
            case str():
                yield from (self._target(name, at) for name in REFERENCE.findall(value))

    def _target(self, name: str, at: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """Return the value that a reference names, and its keys; None if there is none."""
        dots = len(name) - len(name.lstrip("."))  # `.a` is next to the reference, `..a` one above
        base = at[: len(at) - dots] if dots else ()
        keys = (*base, *filter(None, re.split(r"[.\[\]]", name[dots:])))
        value: Any = self._tree
        for key in keys:
            value = _child(value, key)
        return value, keys


def _child(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    is_index = isinstance(value, list) and key.isdecimal() and int(key) < len(value)
    return value[int(key)] if is_index else None
