"""Bounds on logs: the rate of lines of one kind, and the size of a file.

A client without a key can cause lines as fast as it connects, and an engine may print without end.
The run folder is on a shared disk with a quota.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LINES_PER_INTERVAL, INTERVAL_S = 100, 60.0  # for each kind of line
MAX_LOG_BYTES = 64 << 20  # a longer log is cut; its end is kept in a second file of this size
CHECK_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


@dataclass
class _Count:
    """Lines of one kind in the current interval."""

    began: float
    lines: int = 0


class RateLimit(logging.Filter):
    """Limits the lines of one kind. A line reports how many were omitted before it.

    Lines that one place of the code writes are of one kind. `extra={"kind": …}` divides them.
    """

    def __init__(
        self, lines: int = LINES_PER_INTERVAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._lines, self._clock = lines, clock
        self._counts = dict[object, _Count]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for a line to write. Mutates lines at the limit and after it."""
        kind, now = (record.name, record.lineno, getattr(record, "kind", None)), self._clock()
        count = self._counts.setdefault(kind, _Count(now))
        if now - count.began >= INTERVAL_S:
            omitted = count.lines - self._lines
            count = self._counts[kind] = _Count(now)
            if omitted > 0:
                _append(record, f"{omitted} lines like this one were omitted")
        count.lines += 1
        if count.lines == self._lines:
            rest_s = INTERVAL_S - (now - count.began)
            _append(record, f"more lines like this one are omitted for {rest_s:.0f} s")
        return count.lines <= self._lines


def _append(record: logging.LogRecord, note: str) -> None:
    record.msg, record.args = f"{record.getMessage()} ({note})", None


class BoundedFileHandler(logging.FileHandler):
    """Appends to a log and keeps it near `max_bytes`, with a check every few seconds.

    Several processes may append to the same file.
    """

    def __init__(
        self, file: Path, max_bytes: int = MAX_LOG_BYTES, interval_s: float = CHECK_INTERVAL_S
    ) -> None:
        super().__init__(file)
        self._file, self._max_bytes, self._interval_s = file, max_bytes, interval_s
        self._next_check_at = time.monotonic() + interval_s

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if (now := time.monotonic()) >= self._next_check_at:
            self._next_check_at = now + self._interval_s  # the check logs to this handler
            _limit_each([self._file], self._max_bytes)


async def limit_sizes(files: Iterable[Path]) -> None:
    """Keep logs near MAX_LOG_BYTES, with a check every few seconds. Runs until cancelled."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL_S)
        await asyncio.to_thread(_limit_each, files)


def _limit_each(files: Iterable[Path], max_bytes: int = MAX_LOG_BYTES) -> None:
    for file in files:
        try:
            limit_size(file, max_bytes)
        except OSError as e:  # a full disk, or a run folder that was deleted
            log.warning("%s is not shortened: %s", file, e)


def limit_size(file: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move the end of a long log to FILE.1 and empty it. Raises OSError.

    Its writers append (O_APPEND), so they continue at the new end. A line that is written between
    the two steps is lost.
    """
    with suppress(FileNotFoundError), file.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size <= max_bytes:
            return
        stream.seek(size - max_bytes)
        kept = file.with_name(f"{file.name}.1")
        with kept.open("wb") as copy:
            while block := stream.read(1 << 20):
                copy.write(block)
        stream.truncate(0)
        log.info("%s had %d bytes; its end is in %s", file.name, size, kept.name)
