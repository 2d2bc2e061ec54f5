"""Files of the run folder, written so that readers never see a part of one."""

import errno
import os
import re
import secrets
import shlex
from pathlib import Path
from typing import TypeVar

import msgspec

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.regular_file import MAX_RECORD_BYTES, read_regular_file

T = TypeVar("T")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that readers see all of its old or its new content, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as e:  # the error of a full disk has no file name
        temporary.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(path)) from e


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=1), mode=mode)


def read_json(path: Path, type_: type[T], *, shown: bool = False) -> T | None:
    """Return the record in `path`, or None without a file. Raises HpcDynamoError if it is
    invalid, larger than `MAX_RECORD_BYTES`, or no file; a pipe is not waited for.

    If its texts are `shown` on terminals, their lines after the first are indented: the run may be
    of another user, and a line could pass for a message of this program.
    """
    try:
        content = read_regular_file(path, MAX_RECORD_BYTES)
        return msgspec.json.decode(_indented(content) if shown else content, type=type_)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, RecursionError) as e:
        hint = "the file was changed by hand, or by another version of hpc-dynamo"
        raise HpcDynamoError(f"{path} cannot be read: {e}", hint=hint) from e
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.EFBIG):
            raise
        what = f"{path} cannot be read: {e.strerror}"
        raise HpcDynamoError(what, hint=f"ls -l {shlex.quote(str(path))}") from e


# An escaped newline that is not indented, or any other escape sequence of JSON.
_ESCAPES = re.compile(rb"(?P<newline>\\(?:n|u000[aA])(?!  ))|\\.", re.DOTALL)


def _indented(content: bytes) -> bytes:
    """Indent the lines after the first of each text in JSON by two spaces."""
    return _ESCAPES.sub(lambda f: b"\\n  " if f["newline"] else f[0], content)
