"""Protection of run folders from other users.

A run folder contains keys, the configuration of a job, and a pickle that its tasks execute. Each
process of a run checks that only its own user, or root, could have put these files there:

- The run folder is a real folder of this user with mode 0700, and its entries are of this user.
- Its parent belongs to this user or to root. Others may write to it only if it is sticky.
- No folder above is writable by all users, unless it is sticky, as /tmp is.
- A symbolic link on the path belongs to this user or to root. The run folder itself is not a link.

Users who may write to a folder above the parent through its group are trusted.
"""

import errno
import os
import pwd
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from hpc_dynamo.errors import FileRefused

PRIVATE_UMASK = 0o077
PRIVATE_MODE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0
OTHER_NAME = "another name=NAME"
OWN_FOLDER = "runs_dir=FOLDER, a folder of your own"


def create_private_folder(path: Path) -> None:
    """Create a run folder and its missing parents with mode 0700. Raises FileRefused if a folder
    that exists is not safe; see `require_private_folder`."""
    for folder in reversed([path, *path.parents]):
        with suppress(FileExistsError):
            folder.mkdir(mode=PRIVATE_MODE)
    require_private_folder(path)


def require_private_folder(path: Path) -> None:
    """Raise FileRefused if another user could have written to a run folder, or could replace it.

    A folder of this user that others may only read gets mode 0700. A missing folder is accepted.
    """
    path = path.absolute()
    _check_links(path.parent)
    _check_parents(path.parent.resolve())
    with suppress(FileNotFoundError):
        os.close(open_private_folder(path))


def open_private_folder(path: Path) -> int:
    """Return a descriptor of a folder that only this user could have written to.

    It stays valid and checked if the folder is moved. Raises FileRefused, see
    `require_private_folder`; the parents are not checked.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as e:
        if e.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise _refusal(path, path.lstat(), "it is a link or a file", OTHER_NAME) from e
    try:
        _check_folder(path, handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_links(path: Path) -> None:
    for part in (path, *path.parents):
        with suppress(FileNotFoundError):
            found = part.lstat()
            if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), ROOT):
                what = "it is a symbolic link of another user"
                raise _refusal(part, found, what, OWN_FOLDER)


def _check_parents(parent: Path) -> None:
    for folder in (parent, *parent.parents):
        with suppress(FileNotFoundError):
            found = folder.stat()
            sticky = bool(found.st_mode & stat.S_ISVTX)
            if found.st_mode & stat.S_IWOTH and not sticky:
                raise _writable(folder, found)
            if folder != parent:
                continue
            if found.st_uid not in (os.geteuid(), ROOT):
                what = "it belongs to another user and its owner could replace runs in it"
                raise _refusal(folder, found, what, OWN_FOLDER)
            if found.st_mode & OTHERS_WRITE and not sticky:
                raise _writable(folder, found)


def _writable(folder: Path, found: os.stat_result) -> FileRefused:
    command = "chmod go-w" if found.st_mode & stat.S_IWGRP else "chmod o-w"
    hint = f"`{command} {shlex.quote(str(folder))}`, or {OWN_FOLDER}"
    return _refusal(folder, found, "others can write to it, so they could replace runs in it", hint)


def _check_folder(path: Path, handle: int) -> None:
    """Check an open folder and its entries. Limits its mode to its owner."""
    found = os.fstat(handle)
    if found.st_uid != os.geteuid():
        raise _refusal(path, found, "it belongs to another user", OTHER_NAME)
    if found.st_mode & OTHERS_WRITE:
        quoted = shlex.quote(str(path))
        hint = f"`ls -la {quoted}`, then `chmod 700 {quoted}`; or {OTHER_NAME}"
        raise _refusal(path, found, "others can write to it and may have put files there", hint)
    if stat.S_IMODE(found.st_mode) != PRIVATE_MODE:
        os.fchmod(handle, PRIVATE_MODE)
    for name in os.listdir(handle):
        entry = os.stat(name, dir_fd=handle, follow_symlinks=False)
        if entry.st_uid not in (os.geteuid(), ROOT):
            what = "it belongs to another user and is in a run folder of yours"
            hint = f"`rm -r {shlex.quote(str(path / name))}`, or {OTHER_NAME}"
            raise _refusal(path / name, entry, what, hint)


def _refusal(path: Path, found: os.stat_result, what: str, hint: str) -> FileRefused:
    mode = stat.S_IMODE(found.st_mode)
    return FileRefused(f"{path}: {what} (owner {_name(found.st_uid)}, mode {mode:04o})", hint=hint)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
