"""Fields of the configuration that carry their own documentation and bounds.

The metadata drives the check of bounds (`config.validation.bounds`), the comments of `plan --show`,
the reference page of the documentation, and the old names of renamed fields.
"""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
KEY = "setting"


@dataclass(frozen=True)
class FieldInfo:
    """Documentation and bounds of one field. `was` is its name in the previous version."""

    help: str
    unit: str = ""
    ge: float | None = None  # least value
    gt: float | None = None  # exclusive lower bound
    le: float | None = None  # greatest value
    choices: tuple[str, ...] = ()
    path: bool = False  # `~` at the start is the home directory; true for the elements of a list
    was: str = ""

    @property
    def bounds(self) -> str:
        """Return the bounds in words, empty if there are none."""
        if self.gt is not None:
            return f"above {self.gt:g}"
        if self.ge is not None and self.le is not None:
            return f"from {self.ge:g} to {self.le:g}"
        return "" if self.ge is None else f"at least {self.ge:g}"

    def contains(self, value: float) -> bool:
        """Return True if a number is within the bounds."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
        )


def setting(default: T, help: str, **info: Any) -> T:
    """Return a dataclass field with a default value and the `FieldInfo` of these arguments."""
    metadata = {KEY: FieldInfo(help, **info)}
    if isinstance(default, dict):
        return cast(T, field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


def section(default: T, help: str = "", was: str = "") -> T:
    """Return a dataclass field that holds a section. Its help is the docstring of its class."""
    help = help or (type(default).__doc__ or "").partition("\n\n")[0]
    return field(default=default, metadata={KEY: FieldInfo(help, was=was)})


@dataclass(frozen=True)
class SchemaField:
    """Field of the schema with its dotted name. `*` in a name is any key of a mapping."""

    name: str
    type: Any
    default: Any
    info: FieldInfo


def own_fields(section: type) -> Iterator[SchemaField]:
    """Yield the fields of a section, sections below it included, by their own names."""
    types = get_type_hints(section)
    for each in fields(section):
        factory = each.default_factory
        default = each.default if factory is MISSING else factory()
        yield SchemaField(each.name, types[each.name], default, each.metadata[KEY])


def schema_fields(section: type, above: str = "") -> Iterator[SchemaField]:
    """Yield all fields below a section by their dotted names, in the order of declaration."""
    for own in own_fields(section):
        name = f"{above}{own.name}"
        yield replace(own, name=name)
        if is_dataclass(own.type):
            yield from schema_fields(cast(type, own.type), f"{name}.")
        elif get_origin(own.type) is dict and is_dataclass(get_args(own.type)[1]):
            yield from schema_fields(get_args(own.type)[1], f"{name}.*.")
