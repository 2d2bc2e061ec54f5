"""Read files that others may have made. A pipe, a device or a huge sparse file could stop a process
or fill its memory."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_KEY_BYTES = 1 << 16  # size of a file with a key or a certificate
MAX_RECORD_BYTES = 64 << 20  # size of a JSON file; a record of 10,000 nodes has a few MiB


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file without waiting for it. Raises OSError if it is a pipe, a device or a socket."""
    file = open(path, "rb", opener=_open_without_wait)  # noqa: SIM115  # the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file. Raises OSError if it has more than `max_bytes`, or see
    `open_regular_file`."""
    with open_regular_file(path) as file:
        if os.fstat(file.fileno()).st_size <= max_bytes:
            content = file.read(max_bytes + 1)  # it may grow meanwhile
            if len(content) <= max_bytes:
                return content
    raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes", str(path))


def read_key(path: str | Path) -> str:
    """Return the key in a file, without spaces around it. Raises OSError, see
    `read_regular_file`, and UnicodeDecodeError."""
    return read_regular_file(Path(path), MAX_KEY_BYTES).decode().strip()


def _open_without_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
