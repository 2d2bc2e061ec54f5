"""Private folder of a process on this node: sockets and temporary files of it and its engines.

The process holds a lock on the folder (flock), which the kernel releases however the process ends.
So a folder without a lock is a leftover, and the next process of the same user removes it. Folders
of other users, links, files and folders without the mark of this module are not touched.

The folder is made only if no other user can rename it: its place passes the checks of run/privacy.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_dynamo.errors import FileRefused
from hpc_dynamo.run.privacy import OTHERS_WRITE, require_safe_parent

PREFIX = "hpc-dynamo-node-"
# The path of a unix socket has at most 107 bytes, and vLLM names its sockets by 36 letters.
MAX_BASE_BYTES = 45
SHORT_BASE = "/tmp"
MARK = ".hpc-dynamo-node"  # a file: shows that this module made the folder


@contextmanager
def private_node_folder() -> Iterator[str]:
    """Create a folder that only this user can enter; it is removed at the end.

    It is in TMPDIR, or in /tmp if that path is too long for sockets or other users could rename
    what is in it. Raises FileRefused if this is so for /tmp too.
    """
    base = _safe_base()
    remove_leftover_folders(Path(base))
    path, lock = _locked_folder(base)
    try:
        yield path
    finally:
        _remove_tree(path)
        os.close(lock)


def _safe_base() -> str:
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) <= MAX_BASE_BYTES:
        with suppress(FileRefused):
            require_safe_parent(Path(base), in_container=True)
            return base
    try:
        require_safe_parent(Path(SHORT_BASE), in_container=True)
    except FileRefused as e:
        raise FileRefused(e.message, hint="TMPDIR=FOLDER, a short path of your own") from e
    return SHORT_BASE


def has_private_tmpdir() -> bool:
    """Return True if only this user can put files into TMPDIR."""
    base = Path(tempfile.gettempdir())
    with suppress(FileRefused, OSError):
        require_safe_parent(base, in_container=True)
        found = base.stat()
        return found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE
    return False


def _locked_folder(base: str) -> tuple[str, int]:
    """Return a new folder and the descriptor that locks it. Another process may take a folder for a
    leftover before it is locked; then another one is made."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                os.close(os.open(MARK, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=handle))
                if os.path.exists(path):
                    return path, handle
            os.close(handle)


def _remove_tree(path: str | Path) -> None:
    """Remove a folder as far as possible, also folders in it that are closed to their owner.

    The kernel makes such a folder for a writable layer (overlayfs), for example of a container.
    """

    def open_and_remove(_function: object, inner: str, _error: object) -> None:
        with suppress(OSError):
            if stat.S_ISDIR(os.lstat(inner).st_mode):
                os.chmod(inner, stat.S_IRWXU)
                shutil.rmtree(inner, ignore_errors=True)

    shutil.rmtree(path, onerror=open_and_remove)


def remove_leftover_folders(base: Path) -> None:
    """Remove this user's node folders in `base` whose processes have ended, also by kill -9."""
    for path in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, a link, without mark, or removed meanwhile
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(handle)
                if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.stat(MARK, dir_fd=handle)
                    _remove_tree(path)
            finally:
                os.close(handle)
