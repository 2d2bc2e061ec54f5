"""Options of an engine's own that we read as well: what they must be, to be read."""

from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Config
from hpc_dynamo.engines.contract import given, parsed
from hpc_dynamo.errors import ConfigError, override


def count(name: str, value: Any, default: int) -> int:
    """A whole number above zero, `default` where there is none. Raises ConfigError."""
    if value is None:
        return default
    if isinstance(value, bool) or not str(value).isdecimal() or not int(value):
        what = f"{name}={value} is not a whole number above zero"
        raise ConfigError(what, hint=f"{name}={default}, or leave it out")
    return int(value)


def counted(config: Config, name: str, default: int) -> int:
    """Of engine.args. Raises ConfigError."""
    return count(f"engine.args.{name}", given(config).get(name), default)


def refuse_text(config: Config, name: str, example: str) -> None:
    """Refuse a text for an option whose keys are completed one by one. Raises ConfigError."""
    value = given(config).get(name)
    if not isinstance(parsed(value), Mapping | None):
        field = f"engine.args.{name}"
        raise ConfigError(f"{field}={value} must be JSON", hint=override(field, example))
