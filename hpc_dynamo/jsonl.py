"""JSON Lines files that survive a crash: one record per line, synced to disk."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from hpc_dynamo.regular_file import open_regular_file

T = TypeVar("T")

MAX_LINE_BYTES = 16 << 20  # a longer line is skipped


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
    """Yield the records of a file, which need not exist. Raises OSError if it is a pipe or device.

    Lines that are incomplete, because a crash tore them or they are being written, are skipped.
    """
    decoder = msgspec.json.Decoder(record)
    if not path.exists():
        return
    with open_regular_file(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            if line.endswith(b"\n"):
                with suppress(msgspec.DecodeError, RecursionError):
                    yield decoder.decode(line)
