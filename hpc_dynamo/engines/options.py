"""Options of an engine's own that we read as well: what they must be, to be read."""

from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Config
from hpc_dynamo.engines.contract import parse_json, user_options
from hpc_dynamo.errors import ConfigError, quoted_override


def positive_int(name: str, value: Any, default: int) -> int:
    """A whole number above zero, `default` where there is none. Raises ConfigError."""
    if value is None:
        return default
    if isinstance(value, bool) or not str(value).isdecimal() or not int(value):
        what = f"{name}={value} is not a whole number above zero"
        raise ConfigError(what, hint=f"{name}={default}, or leave it out")
    return int(value)


def positive_option(config: Config, name: str, default: int) -> int:
    """Of engine.args. Raises ConfigError."""
    return positive_int(f"engine.args.{name}", user_options(config).get(name), default)


def require_json(config: Config, name: str, example: str) -> None:
    """Refuse a text for an option whose keys are completed one by one. Raises ConfigError."""
    value = user_options(config).get(name)
    if not isinstance(parse_json(value), Mapping | None):
        field = f"engine.args.{name}"
        raise ConfigError(f"{field}={value} must be JSON", hint=quoted_override(field, example))
