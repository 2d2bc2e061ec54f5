"""Checks of `engine.allowed_media`."""

import re
from collections.abc import Sequence

from hpc_dynamo.errors import ConfigError

_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def check_allowed_media(allowed: Sequence[str]) -> None:
    """Refuse an entry that is neither a host nor an absolute folder."""
    for entry in allowed:
        folder = entry.startswith("/") and entry.strip("/") and ".." not in entry.split("/")
        if not folder and not _HOST.fullmatch(entry):
            what = f"engine.allowed_media: {entry!r} is neither a host nor an absolute folder"
            raise ConfigError(what, hint="engine.allowed_media=[images.example.org,/data/images]")
