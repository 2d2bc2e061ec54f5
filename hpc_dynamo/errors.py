"""Exceptions of this toolkit, in one tree.

    HpcDynamoError            exit code 1: a retry may help
    ├── UsageError            exit code 3: a retry cannot help
    │   ├── ConfigError       a key, value or layout that cannot work, with the field's name
    │   │   └── NoTokenizer   (preprocess) a model whose prompts cannot be tokenized here
    │   ├── InputError        a batch input that cannot be used, with line numbers
    │   ├── MissingDependency an optional package or a program is missing
    │   └── FileRefused       a file that cannot be read or written: permission, name, missing
    ├── FileError             the file system failed: no space, quota, a limit
    ├── LaunchError           Slurm or the local executor refused or lost the job
    ├── RunBusy               another attempt writes to this run folder
    ├── BootstrapError        ranks that did not connect, each with node and log
    ├── WireError             a peer did not answer in time, or sent an invalid message
    ├── EngineError           an engine did not start or died, with rank, node and log
    ├── RequestFailed         an engine answered with an error, or not at all
    │   ├── PromptRejected    (chat_templates) the chat template refuses the messages
    │   ├── TemplateFailed    (chat_templates) the chat template exceeded a limit
    │   ├── NoSuchWorker      (router) the request names a worker that is not there
    │   └── Overloaded, NoWorker, Exhausted   (router) no worker has room, is ready, or is left
    └── KvTransferError       NIXL could not register, connect or move a buffer

The message describes what happened, to which rank and node. `hint` is what to try, and `log` is the
file with more details.
"""

import errno
import os
import pwd
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of every command of this toolkit. `meaning` is shown by `--help`."""

    done = 0, "done; also after `hpc-dynamo stop`"
    failed = 1, "failed; the same command may succeed later (doctor: there is a fault)"
    usage = 2, "an unknown verb or option"
    refused = 3, "refused; change something first (batch: no request was answered)"
    some_failed = 4, "the batch is finished, but some of its requests failed"
    interrupted = 130, "ended by Ctrl-C"

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        """Return the member for this code, with its meaning as an attribute."""
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member


class HpcDynamoError(Exception):
    """Base of the tree. `str()` gives the message, the log and the hint, a line each."""

    exit_code: int = ExitCode.failed
    bad_hosts: tuple[str, ...] = ()  # nodes that cause the error; a job without them may work

    def __init__(self, message: str, *, hint: str = "", log: Path | str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.log = message, hint, log

    def __str__(self) -> str:
        log = f"log: {self.log}" if self.log else ""
        hint = f"try: {self.hint}" if self.hint else ""
        return "\n  ".join(part for part in (self.message, log, hint) if part)


class UsageError(HpcDynamoError):
    """The request itself is wrong; the same call will fail again."""

    exit_code = ExitCode.refused


class ConfigError(UsageError):
    """A configuration that cannot work. The message starts with the field's dotted name."""


class InputError(UsageError):
    """A batch input that cannot be used. The message has lines `file:line: reason`."""


class MissingDependency(UsageError):
    """An optional package or a program of the system is missing; `hint` is the command."""


class LaunchError(HpcDynamoError):
    """Slurm or the local executor refused the job, or lost it."""


class RunBusy(HpcDynamoError):
    """Another attempt of the same run has not ended."""


class BootstrapError(HpcDynamoError):
    """Some ranks did not connect in time."""


class WireError(HpcDynamoError):
    """A peer did not answer before the deadline, or sent an invalid message."""


class EngineError(HpcDynamoError):
    """An engine did not become ready, or died."""


class KvTransferError(HpcDynamoError):
    """NIXL could not register memory, reach a peer or move a buffer."""


class RequestFailed(HpcDynamoError):
    """One request did not succeed.

    `status` is the engine's HTTP status, or 503 if no engine could be reached. `body` is the
    engine's answer unchanged, or an error in OpenAI's format.
    """

    def __init__(self, message: str, *, status: int, body: bytes = b"", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status, self.body = status, body

    @property
    def final(self) -> bool:
        """Return True if the engine refused the request itself, so that no retry can help."""
        return 400 <= self.status < 500 and self.status not in (408, 425, 429)


def quoted_override(field: str, value: object) -> str:
    """Return FIELD=VALUE for a shell, in quotes if it needs them."""
    return shlex.quote(f"{field}={value}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an unknown name. It lists the known ones and suggests the closest."""
    names = sorted(known)
    guess = get_close_matches(name, names, n=1)
    meant = f"did you mean {guess[0]!r}? " if guess else ""
    return ConfigError(f"{kind}={name!r} is not known", hint=f"{meant}known: {', '.join(names)}")


def unknown_field_error(path: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a field that does not exist below `path` (empty: at the top)."""
    full = f"{path}.{name}".lstrip(".")
    guess = get_close_matches(name, names := sorted(known), n=1)
    meant = f"did you mean {guess[0]}? " if guess else ""
    return ConfigError(f"{full} is not a field", hint=f"{meant}known: {', '.join(names)}")


class FileError(HpcDynamoError):
    """The operating system refused to read or write a file. Its text is one line."""

    def __str__(self) -> str:
        return f"{self.message}; try: {self.hint}"


class FileRefused(FileError, UsageError):
    """FileError for which a retry cannot help: a permission, a name, a missing file."""


# errno: what happened, what to try, and whether the same call can succeed later.
_FILE_ERRORS = {
    errno.EACCES: ("permission denied", "a folder that you may write to", False),
    errno.EPERM: ("not permitted", "a folder of your own", False),
    errno.EROFS: ("the file system is read-only", "another file system", False),
    errno.ENOENT: ("no such file or folder", "the path, for a misspelt name", False),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "another path", False),
    errno.EISDIR: ("it is a folder, not a file", "a file in it", False),
    errno.ENAMETOOLONG: ("the name is too long", "a shorter name=… or path", False),
    errno.ELOOP: ("its symbolic links form a circle", "another path", False),
    errno.ENOSPC: (
        "no space left on the device",
        "`df -h {path}`; free some space, or use another disk",
        True,
    ),
    errno.EDQUOT: ("your disk quota is used up", "`quota -s`; free some space in {path}", True),
    errno.EFBIG: ("the file is larger than its limit", "`ulimit -f`, or another file system", True),
    errno.EMFILE: ("too many open files", "`ulimit -n 65536`", True),
    errno.ENFILE: ("too many open files on this machine", "another node", True),
    errno.EIO: ("input/output error of the file system", "another file system", True),
    errno.ESTALE: ("the network file system has lost this file", "the same command again", True),
}


def file_error(error: OSError, near: Path | None = None) -> FileError | None:
    """Return one line with path and remedy for a file system error; None for any other.

    `near` is a file that is probably on the same disk, for a full disk that names no file.
    """
    if error.errno not in _FILE_ERRORS:
        return None
    what, remedy, again = _FILE_ERRORS[error.errno]
    path = _path(error.filename2 or error.filename) or (near if "{path}" in remedy else None)
    owner = ""
    if path and error.errno in (errno.EACCES, errno.EPERM):
        there, name = _existing(path), _other_owner(path)
        owner = f" ({there} belongs to {name})" if name else ""
        remedy = _access(there, name) if _is_unreadable(there) else remedy
    else:
        remedy = remedy.format(path=shlex.quote(str(_existing(path))) if path else "~")
    where = f"{path}: " if path else ""
    return (FileError if again else FileRefused)(f"{where}{what}{owner}", hint=remedy)


def file_error_in(error: BaseException, near: Path | None = None) -> FileError | None:
    """Return the first file system error in `error`, which may be a group, and in its causes.

    `near`: see `file_error`.
    """
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, (file_error_in(e, near) for e in error.exceptions)), None)
    if isinstance(error, OSError):
        return file_error(error, near)
    return file_error_in(error.__cause__, near) if error.__cause__ else None


def _is_unreadable(there: Path) -> bool:
    """Return True if reading is already refused, and not only writing."""
    return not os.access(there, os.R_OK | os.X_OK if there.is_dir() else os.R_OK)


def _access(there: Path, owner: str) -> str:
    """Return what gives the right to read a file or folder; `owner` is another user, if any."""
    path = shlex.quote(str(there))
    if owner:
        return f"ask {owner} for read access; `ls -ld {path}` shows its permissions"
    return f"`chmod u+rX {path}`; `ls -ld {path}` shows its permissions"


def _path(name: object) -> Path | None:
    return Path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes | Path) else None


def _existing(path: Path) -> Path:
    """Return the path, or its nearest existing parent folder."""
    return next((p for p in (path, *path.parents) if os.access(p, os.F_OK)), path)


def _other_owner(path: Path) -> str:
    """Return the owner of a file, or of its nearest existing folder, if it is another user."""
    try:
        uid = _existing(path).stat().st_uid
        return pwd.getpwuid(uid).pw_name if uid != os.geteuid() else ""
    except (OSError, KeyError):
        return ""
