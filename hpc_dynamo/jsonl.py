"""JSON Lines files that survive a crash: one record per line, synced to disk."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def append(path: Path, record: msgspec.Struct) -> None:
    """Append a record as one line; it is on disk when this returns. Raises OSError.

    If a crash tore the last line, the new record starts on a new line.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        write_all(file.fileno(), msgspec.json.encode(record) + b"\n")


def write_all(handle: int, data: bytes) -> None:
    """Write all of `data` to an open file and flush it to disk. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


def read(path: Path, record: type[T]) -> Iterator[T]:
    """Yield the records of a file, which need not exist.

    Lines that are incomplete, because a crash tore them or they are being written, are skipped.
    """
    decoder = msgspec.json.Decoder(record)
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if line.endswith(b"\n"):
            with suppress(msgspec.DecodeError, RecursionError):
                yield decoder.decode(line)
