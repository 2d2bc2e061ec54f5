"""Fields that hold paths: `~` at their start is the home directory."""

import os
from fnmatch import fnmatchcase

from hpc_dynamo.errors import ConfigError, quoted_override

# A `*` is any name in a mapping, or any element of a list.
PATHS = (
    "runs_dir",
    "input",
    "model.path",
    "model.lora.*",
    "engine.python",
    "engine.container.image",
    "engine.container.mounts.*",
    "serve.api_key_file",
    "serve.tls_cert",
    "serve.tls_key",
    "route.api_key_file",
    "planner.profile",
    "simulate.trace",
    "simulate.timing_model",
    "simulate.plot",
)


def is_path(name: str) -> bool:
    """Return True if the field with this dotted name, or an element of it, is a path."""
    return any(fnmatchcase(name, pattern) for pattern in PATHS)


def at_home(path: str, name: str) -> str:
    """Return a path with `~` or `~USER` replaced by the home directory. `name` is the field's.

    Raises ConfigError for an unknown user: otherwise a folder called `~USER` would be made.
    """
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path[1:].partition("/")[0]
        raise ConfigError(
            f"{name}={path}: there is no user {user!r}", hint=quoted_override(name, f"./{path}")
        )
    return found
