"""Fields that hold paths: `~` at the start is the home directory."""

import os
from fnmatch import fnmatchcase

from hpc_dynamo.config.schema.config import Config
from hpc_dynamo.config.schema.setting import schema_fields
from hpc_dynamo.errors import ConfigError, quoted_override

# Fields of `models.*` are composed separately, as those of a run of one model.
PATHS = tuple(f.name for f in schema_fields(Config) if f.info.path and "*" not in f.name)


def is_path(name: str) -> bool:
    """Return True if the field with this dotted name, or an element of it, is a path."""
    return any(name == path or fnmatchcase(name, f"{path}.*") for path in PATHS)


def expand_home(path: str, name: str) -> str:
    """Return a path with `~` or `~USER` replaced by the home directory. `name` is the field's.

    Raises ConfigError for an unknown user: otherwise a folder called `~USER` would be made.
    """
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path[1:].partition("/")[0]
        hint = quoted_override(name, f"./{path}")
        raise ConfigError(f"{name}={path}: there is no user {user!r}", hint=hint)
    return found
