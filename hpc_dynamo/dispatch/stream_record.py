"""Copy of a stream as its client received it, kept until the stream is complete."""

import zlib

PLAIN_BYTES = 64 << 10  # compressed together; takes 0.3 ms
PACKED_BYTES = 1 << 20  # about 50,000 tokens
MAX_EVENT_BYTES = 4 << 20  # a longer event is not kept: compressing it would take too long


class StreamRecord:
    """Bytes of one stream. Each chunk repeats its head, so that they shrink to a twentieth."""

    __slots__ = ("_packed", "_packed_bytes", "_plain", "_plain_bytes")

    def __init__(self) -> None:
        self._plain, self._plain_bytes = list[bytes](), 0
        self._packed, self._packed_bytes = list[bytes](), 0

    def append(self, data: bytes) -> None:
        self._plain.append(data)
        self._plain_bytes += len(data)
        if self._plain_bytes > PLAIN_BYTES:
            self._pack()

    def content(self) -> bytes | None:
        """Return the stream, or None if it was too long to be kept."""
        if self._packed_bytes > PACKED_BYTES:
            return None
        return b"".join([*map(zlib.decompress, self._packed), *self._plain])

    def _pack(self) -> None:
        last = self._plain.pop()
        if len(plain := b"".join(self._plain)) > MAX_EVENT_BYTES:
            self._packed_bytes = PACKED_BYTES + 1
        if self._packed_bytes <= PACKED_BYTES:
            packed = zlib.compress(plain, level=1)
            self._packed.append(packed)
            self._packed_bytes += len(packed)
        else:
            self._packed.clear()
        self._plain, self._plain_bytes = [last], len(last)
