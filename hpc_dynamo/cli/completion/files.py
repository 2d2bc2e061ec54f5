"""Candidates for file names."""

from collections.abc import Iterator
from pathlib import Path


def files(prefix: str, typed: str) -> Iterator[tuple[str, str]]:
    """Yield files that continue the path `typed`; `prefix` stands before it in the same word."""
    name = typed.rpartition("/")[2]
    start = typed[: len(typed) - len(name)]
    try:
        found = sorted(Path(start or ".").expanduser().iterdir())
    except OSError:
        return
    for file in found:
        if file.name.startswith(name) and (name or not file.name.startswith(".")):
            yield f"{prefix}{start}{file.name}{'/' if file.is_dir() else ''}", ""
