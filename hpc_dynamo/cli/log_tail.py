"""Read the end of a log, and the lines that are appended later."""

import os
from pathlib import Path

from hpc_dynamo.regular_file import open_regular_file

BLOCK_BYTES = 1 << 16
MAX_BYTES = 16 << 20  # size of a part of a log that is read at once


class LogTail:
    """Lines of a file that other processes append to. The file need not exist yet.

    A file that has become shorter was rewritten, and is read from its start.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._offset, self._part = 0, b""

    def last(self, count: int) -> list[str]:
        """Return the last whole lines, at most 2 * `MAX_BYTES`. `read` continues after them."""
        try:
            with open_regular_file(self.file) as file:
                end = start = file.seek(0, os.SEEK_END)
                data = b""
                while start and data.count(b"\n") <= count and len(data) < MAX_BYTES:
                    size = min(start, max(len(data), BLOCK_BYTES))
                    start = file.seek(start - size)
                    data = file.read(size) + data
        except FileNotFoundError:
            return []
        self._offset = end
        lines = self._whole(data)
        return lines[max(0, len(lines) - count) :]

    def read(self) -> list[str]:
        """Return whole lines that are new since the last call, at most `MAX_BYTES`."""
        try:
            with open_regular_file(self.file) as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset, self._part = 0, b""
                file.seek(self._offset)
                data = file.read(MAX_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        return self._whole(self._part[-MAX_BYTES:] + data)

    def rest(self) -> list[str]:
        """Return the text after the last newline, once nothing more is appended."""
        part, self._part = self._part, b""
        return [_text(part)] if part else []

    def _whole(self, data: bytes) -> list[str]:
        *lines, self._part = data.split(b"\n")
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
