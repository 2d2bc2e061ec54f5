"""Protection of run folders from other users.

A run folder contains keys, the configuration of a job, and a pickle that its tasks execute. Each
process of a run checks that only its own user, or root, could have put these files there:

- The run folder is a real folder of this user with mode 0700, and its entries are of this user.
- Its parent belongs to this user or to root. Others may write to it only if it is sticky.
- Each folder above belongs to this user or to root, since its owner can rename what is in it. This
  includes folders that a link leads through. None is writable by all users, unless it is sticky.
- A folder of another user above the parent is accepted if it is shared with a group of this user:
  writable by a supplementary group and not by all users, as a project folder is.
- A symbolic link on the path belongs to this user or to root. The run folder itself is not a link.

Users who may write to a folder above the parent through its group are trusted. The folders are
checked from `/` downwards: once a folder is accepted, no other user can replace the next one.
"""

import errno
import os
import pwd
import shlex
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path

from hpc_dynamo.errors import FileRefused

PRIVATE_UMASK = 0o077
PRIVATE_MODE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0
MAX_LINKS = 40  # on one path, as in the kernel
OTHER_NAME = "another name=NAME"
OWN_FOLDER = "runs_dir=FOLDER, a folder of your own"
OWN_CWD = "`cd` to a folder of your own"


def create_private_folder(path: Path) -> None:
    """Create a run folder and its missing parents with mode 0700. Raises FileRefused if a folder
    that exists is not safe; see `require_private_folder`."""
    for folder in reversed([path, *path.parents]):
        with suppress(FileExistsError):
            folder.mkdir(mode=PRIVATE_MODE)
    require_private_folder(path)


def require_private_folder(path: Path, *, make_private: bool = True) -> None:
    """Raise FileRefused if another user could have written to a run folder, or could replace it.

    A folder of this user that others may only read gets mode 0700, if `make_private`. A missing
    folder is accepted.
    """
    path = path.absolute()
    require_safe_parent(path.parent)
    with suppress(FileNotFoundError):
        os.close(open_private_folder(path, make_private=make_private))


def open_private_folder(path: Path, *, make_private: bool = True) -> int:
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
        _check_folder(path, handle, make_private)
    except BaseException:
        os.close(handle)
        raise
    return handle


def require_safe_parent(parent: Path, *, in_container: bool = False) -> None:
    """Raise FileRefused if another user could replace what this user makes in a folder.

    Checks each folder and each link on the way, from `/` downwards. A missing one is accepted.
    `in_container`: also accept a last folder that may be root's, see `_unmapped_owner`.
    """
    folder, left, links = Path("/"), list(reversed(parent.absolute().parts[1:])), 0
    _check_above(folder, folder.lstat())
    found = folder.lstat()
    with suppress(FileNotFoundError):
        while left:
            name = left.pop()
            following = folder.parent if name == ".." else folder / name
            found = following.lstat()
            if not stat.S_ISLNK(found.st_mode):
                folder = following
                _check_above(folder, found)
                continue
            _check_link(following, found)
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(parent))
            target = following.readlink()
            folder = Path("/") if target.is_absolute() else folder
            left += reversed([part for part in target.parts if part != "/"])
        _check_parent(folder, folder.lstat(), _trusted_owners() if in_container else _owners())


def require_safe_cwd() -> None:
    """Raise FileRefused if any user could put files into the current folder, even a sticky one.

    Engines and their libraries read files there: UCX loads the modules that its `ucx.conf` names.
    """
    folder = Path.cwd()
    try:
        for above in reversed((folder, *folder.parents)):
            _check_above(above, above.lstat())
    except FileRefused as e:
        raise FileRefused(f"the current folder is not safe: {e.message}", hint=OWN_CWD) from e
    if (found := folder.lstat()).st_mode & stat.S_IWOTH:
        what = "it is the current folder, and all users can put files for engines there"
        raise _refusal(folder, found, what, OWN_CWD)


def _check_link(link: Path, found: os.stat_result) -> None:
    if found.st_uid not in _trusted_owners():
        raise _refusal(link, found, "it is a symbolic link of another user", OWN_FOLDER)


def _check_above(folder: Path, found: os.stat_result) -> None:
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise _writable(folder, found)
    if found.st_uid not in _trusted_owners() and not _is_shared_with_me(found):
        raise _foreign(folder, found)


def _check_parent(folder: Path, found: os.stat_result, owners: frozenset[int]) -> None:
    if found.st_uid not in owners:
        raise _foreign(folder, found)
    if found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        raise _writable(folder, found)


def _foreign(folder: Path, found: os.stat_result) -> FileRefused:
    what = "it belongs to another user and its owner could replace runs in it"
    return _refusal(folder, found, what, OWN_FOLDER)


def _is_shared_with_me(found: os.stat_result) -> bool:
    """Return True for a folder in which a group of this user works together.

    The primary group does not count: at some sites it contains all users.
    """
    groups = set(os.getgroups()) - {_primary_group()}
    writers = found.st_mode & OTHERS_WRITE
    return writers == stat.S_IWGRP and found.st_gid in groups


def _primary_group() -> int:
    try:
        return pwd.getpwuid(os.geteuid()).pw_gid
    except KeyError:
        return os.getgid()


def _owners() -> frozenset[int]:
    return frozenset((os.geteuid(), ROOT))


def _trusted_owners() -> frozenset[int]:
    return _owners() | _unmapped_owner()


@cache
def _unmapped_owner() -> frozenset[int]:
    """Return the user id that the kernel shows for users without one in this user namespace.

    In a container without root's privileges these are root and all other users. Their folders
    look the same there, so this id is trusted above the parent.
    """
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        rows = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:  # a kernel without user namespaces
        return frozenset()
    for first, _, count in (map(int, row.split()) for row in rows):
        if first <= overflow < first + count:
            return frozenset()
    return frozenset((overflow,))


def _writable(folder: Path, found: os.stat_result) -> FileRefused:
    command = "chmod go-w" if found.st_mode & stat.S_IWGRP else "chmod o-w"
    hint = f"`{command} {shlex.quote(str(folder))}`, or {OWN_FOLDER}"
    return _refusal(folder, found, "others can write to it, so they could replace runs in it", hint)


def _check_folder(path: Path, handle: int, make_private: bool) -> None:
    """Check an open folder and its entries. Limits its mode to its owner if `make_private`."""
    found = os.fstat(handle)
    if found.st_uid != os.geteuid():
        raise _refusal(path, found, "it belongs to another user", OTHER_NAME)
    if found.st_mode & OTHERS_WRITE:
        quoted = shlex.quote(str(path))
        hint = f"`ls -la {quoted}`, then `chmod 700 {quoted}`; or {OTHER_NAME}"
        raise _refusal(path, found, "others can write to it and may have put files there", hint)
    if make_private and stat.S_IMODE(found.st_mode) != PRIVATE_MODE:
        os.fchmod(handle, PRIVATE_MODE)
    for name in os.listdir(handle):
        entry = os.stat(name, dir_fd=handle, follow_symlinks=False)
        if entry.st_uid not in (os.geteuid(), ROOT):
            what = "it belongs to another user and is in a run folder of yours"
            hint = f"`rm -r {shlex.quote(str(path / name))}`, or {OTHER_NAME}"
            raise _refusal(path / name, entry, what, hint)


def _refusal(path: Path, found: os.stat_result, what: str, hint: str) -> FileRefused:
    mode = stat.S_IMODE(found.st_mode)
    return FileRefused(
        f"{path}: {what} (owner {user_name(found.st_uid)}, mode {mode:04o})", hint=hint
    )


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
