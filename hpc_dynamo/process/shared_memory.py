"""Shared memory that dead engines have left in /dev/shm. It counts as memory of the node or job."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
# Python's multiprocessing, PyTorch, NCCL, UCX, vLLM; SGLang: 0.5.23, utils/stale_shm_cleanup.py.
PREFIXES = (
    *("psm_", "sem.mp-", "torch_", "nccl-", "ucx_shm_", "vllm_"),
    *("sglang_loads_", "sgl_shm_"),
)

log = logging.getLogger(__name__)


def remove_unused_segments(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove this user's segments that no process has mapped or open; return their names.

    The processes of this user must be visible here, as they are without a PID namespace.
    """
    candidates = {(s.st_dev, s.st_ino): path for path, s in _segments(folder)}
    if not candidates:
        return []
    # Read after the list: a segment that is in use now was in use, or new, before.
    used = set(_used_inodes())
    unused = [path for (_, inode), path in candidates.items() if inode not in used]
    for path in unused:
        path.unlink(missing_ok=True)
    names = sorted(path.name for path in unused)
    if names:
        log.info("removed %d unused segments of shared memory: %s", len(names), ", ".join(names))
    return names


def _segments(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*"):
        if path.name.startswith(PREFIXES):
            with suppress(OSError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                    yield path, found


def _used_inodes() -> Iterator[int]:
    """Yield the inodes of all mapped and open files of this user's processes."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended, or of another user
            for line in (process / "maps").read_text(errors="replace").splitlines():
                # address, permissions, offset, device, inode, path (proc(5))
                yield int(line.split(maxsplit=5)[4])
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    yield descriptor.stat().st_ino
