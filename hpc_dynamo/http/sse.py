"""Server-sent events, the format of streamed answers (WHATWG HTML, section 9.2)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

MEDIA_TYPE = "text/event-stream"
DONE = b"[DONE]"  # data of the event that ends a stream of OpenAI's API
DONE_EVENT = b"data: [DONE]\n\n"


class ServerSentEvent(NamedTuple):
    """One event of a stream. `data` is None for a comment, and for an event without data."""

    data: bytes | None
    raw: bytes  # as received, with the empty line that ends it


class EventParser:
    """Splits the bytes of a stream into events, in whatever pieces the bytes arrive."""

    def __init__(self) -> None:
        self._rest, self._lines = list[bytes](), list[bytes]()

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that this piece completes."""
        self._rest.append(piece)
        if not (b"\n" in piece or b"\r" in piece):  # a line may have megabytes in many pieces
            return
        lines = b"".join(self._rest).splitlines(keepends=True)
        # A \r at the end may be half of a \r\n.
        self._rest = [lines.pop()] if lines and not lines[-1].endswith(b"\n") else []
        for line in lines:
            self._lines.append(line)
            if not line.strip(b"\r\n"):
                event, self._lines = self._lines, []
                if len(event) > 1:
                    yield ServerSentEvent(_data(event), b"".join(event))


def _data(lines: list[bytes]) -> bytes | None:
    fields = (line.rstrip(b"\r\n").partition(b":") for line in lines)
    values = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    return b"\n".join(values) if values else None


def encode_event(content: object) -> bytes:
    """Return the event whose data is `content` as JSON."""
    return b"data: %b\n\n" % msgspec.json.encode(content)


def encode_typed_events(*events: dict[str, Any]) -> bytes:
    """Return events that have their `type` also as the event's name."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )
