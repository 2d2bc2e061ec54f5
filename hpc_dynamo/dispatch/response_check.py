"""Checks that a response with status 200 is an answer, and a complete one.

A broken engine, or a proxy before it, may answer 200 with anything. What is found before the first
byte of a stream is retried on another worker. A stream that ends early fails like one whose worker
dies.
"""

import msgspec

from hpc_dynamo.engines import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from hpc_dynamo.http import ByteSink, HttpResponse
from hpc_dynamo.json_reader import JsonError, read_value

JSON_PATHS = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)  # responses are JSON objects, or streams
# Ends of a complete stream; for /v1/responses, the beginnings of its last event's name.
STREAM_ENDS = {
    CHAT: (b"[DONE]",),
    COMPLETIONS: (b"[DONE]",),
    MESSAGES: (b"message_stop", b"event: error"),
}
LAST_RESPONSE_EVENTS = (
    b"response.completed", b"response.incomplete", b"response.failed", b"response.cancelled",
    b"error",
)  # fmt: skip
STREAM = "text/event-stream"
EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder(msgspec.Raw)


class BadResponse(ValueError):
    """The response is no answer. The message continues "worker 3 answered 200 …"."""


class CheckedResponse:
    """A worker's response, checked as it is read. See worker_client.IncomingResponse.

    The response must be a stream with `stream`, and none without it. Raises BadResponse.
    """

    def __init__(self, response: HttpResponse, path: str, *, stream: bool) -> None:
        self._response, self._path = response, path
        self.headers = response.headers
        self._type = response.headers.get("content-type", "application/json")
        if self._type.startswith("text/html"):
            raise BadResponse("with HTML")
        if path in JSON_PATHS and stream is not self._type.startswith(STREAM):
            expected = "a stream" if stream else "a JSON object"
            raise BadResponse(f"with {self._type} instead of {expected}")

    async def read(self) -> bytes:
        """Return the whole body."""
        content = await self._response.read()
        if not self._type.startswith(STREAM):
            self._check_content(content)
        return content

    async def relay(self, sink: ByteSink) -> None:
        """Write the body to `sink` as it arrives."""
        start = await self._response.first_piece()
        if not start:
            raise BadResponse("with an empty stream")
        stream = self._type.startswith(STREAM)
        if stream and not _starts_event(start.lstrip()):
            raise BadResponse("with a stream that has no events")
        await self._response.relay(sink)
        if stream and not is_complete(self._path, self._response.tail):
            raise BadResponse("with a stream that ended early")

    def _check_content(self, content: bytes) -> None:
        object_expected = self._path in JSON_PATHS
        if not (object_expected or self._type.startswith("application/json")):
            return
        try:
            if not content.isascii():
                content.decode()
            (_OBJECT if object_expected else _ANY).decode(content)
        except UnicodeDecodeError as e:
            raise BadResponse("with text that is not UTF-8") from e
        except (msgspec.DecodeError, RecursionError) as e:
            if _is_lenient_json(content, object_expected=object_expected):
                return
            what = "a JSON object" if object_expected else "JSON"
            raise BadResponse(f"without {what}: {e}") from e


def _is_lenient_json(content: bytes, *, object_expected: bool) -> bool:
    """Return True for JSON of Python's `json`: a request may make an engine repeat `NaN` or half a
    surrogate pair, which must not make its worker look broken."""
    try:
        value = read_value(content)
    except JsonError:
        return False
    return isinstance(value, dict) or not object_expected


def is_complete(path: str, tail: bytes) -> bool:
    """Return True if a stream may end like this. The last event may be longer than the tail."""
    if path == RESPONSES:
        *before, last = tail.rsplit(b"\nevent: ", 1)
        return not before or last.startswith(LAST_RESPONSE_EVENTS)
    return any(end in tail for end in STREAM_ENDS.get(path, (b"",)))


def _starts_event(start: bytes) -> bool:
    """Return True if a stream of events may start with these bytes, which may be only one."""
    return start.startswith(EVENT_STARTS) or any(mark.startswith(start) for mark in EVENT_STARTS)
