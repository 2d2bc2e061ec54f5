"""Limit of open files (RLIMIT_NOFILE): raised at the start of each process, and shared out.

Slurm and login shells often start programs with a soft limit of 1,024 below a higher hard limit.
"""

import errno
import resource
from contextlib import suppress

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
MAX_LIMIT = 1 << 20  # some programs close every possible descriptor when they start
MIN_RESERVE, RESERVE_SHARE = 64, 8  # for files, links and pipes: at least a share of 1/8


def raise_descriptor_limit() -> None:
    """Raise the soft limit of this process, and of those that it starts, to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MAX_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < target:
        # A container may forbid what getrlimit promises.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def connection_budget() -> int:
    """Return how many connections this process may have, apart from its other open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_LIMIT if soft == resource.RLIM_INFINITY else min(soft, MAX_LIMIT)
    return max(2, limit - max(MIN_RESERVE, limit // RESERVE_SHARE))
