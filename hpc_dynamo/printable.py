"""Text of clients, models, engines and files, made safe for logs and terminals.

A control character could forge a line of a log. On a terminal it could hide text, retitle the
window or write to the clipboard.
"""

import logging
import re
from typing import Any

MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS = 4_000, 40_000
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# All control characters but tab and newline, marks that reorder text, halves of surrogate pairs.
_UNSAFE = re.compile("[\0-\b\v-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def escape_controls(text: str) -> str:
    r"""Return the text with unsafe characters as Python escapes, such as `\x1b`.

    Tabs and newlines stay. A second call changes nothing.
    """
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def terminal_line(line: str) -> str:
    """Return a line of a file as a terminal would end up showing it, without its colors.

    Only the text after the last carriage return stays, such as the final state of a progress bar.
    """
    return escape_controls(_COLORS.sub("", line).rpartition("\r")[2])


class LineFormatter(logging.Formatter):
    """Formats records for the logs of all processes.

    Unsafe characters are escaped, and long messages and tracebacks are cut. Lines after the first
    one of a record are indented: a text with newlines cannot forge a record.
    """

    def __init__(self, fmt: str = LOG_FORMAT) -> None:
        super().__init__(fmt)

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _cut(record.message, MAX_MESSAGE_CHARS)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return _cut(super().formatException(ei), MAX_TRACEBACK_CHARS)


def _cut(text: str, limit: int) -> str:
    """Return the text without its middle if it is too long."""
    if len(text) <= limit:
        return text
    end = limit // 4
    omitted = len(text) - limit
    return f"{text[: limit - end]} [{omitted} characters omitted] {text[-end:]}"
