"""Limits of one rendering, and the records between a process and its child that renders.

A request is `marshal` of a body. An answer is ANSWER (an RenderOutcome and a size) and a text.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

SIZE = struct.Struct("!Q")
ANSWER = struct.Struct("!BQ")
GIB = 1 << 30
MEMORY_PER_BYTE = 64  # Python objects are larger than the JSON that they come from
CHARS_PER_BYTE = 8  # templates may repeat parts of a request


@dataclass(frozen=True)
class RenderLimits:
    """CPU time, memory and characters that one rendering may use.

    The CPU time is that of the process, so other load does not count. Longer requests may use more
    memory and may become longer texts.
    """

    cpu_s: float = 3.0
    memory_bytes: int = GIB
    text_chars: int = 32 << 20

    def memory_for(self, request_bytes: int) -> int:
        """Return the limit of the address space for a request of this size."""
        return self.memory_bytes + MEMORY_PER_BYTE * request_bytes

    def chars_for(self, request_bytes: int) -> int:
        """Return the limit of a text for a request of this size."""
        return self.text_chars + CHARS_PER_BYTE * request_bytes


class RenderOutcome(IntEnum):
    """Kind of an answer."""

    text = 0  # the rendered text
    unsupported = 1  # the reason
    rejected = 2  # the reason
    over_limit = 3  # the limit
