"""Answers with status 200 that are none: injected failures of an engine or of a proxy before it."""

from enum import StrEnum

from hpc_dynamo.http import ResponseWriter

HTML = b"<html><body><h1>It works!</h1></body></html>"
EVENTS = b"text/event-stream; charset=utf-8"
JSON = b"application/json"


class BadAnswer(StrEnum):
    """Kind of a bad answer."""

    garbage = "garbage"  # bytes, with the right content type
    html = "html"
    empty = "empty"
    utf8 = "utf8"  # JSON with bytes that are not UTF-8
    half = "half"  # ends in the middle


def send_bad_answer(kind: BadAnswer, reply: ResponseWriter, *, stream: bool) -> None:
    """Send a complete HTTP response of this kind."""
    content_type = EVENTS if stream else JSON
    if kind is BadAnswer.html:
        content_type = b"text/html"
    text = b'{"id": "x", "object": "x", "choices": [{"index": 0, "text": "%b"'
    bodies = {
        BadAnswer.garbage: bytes(range(128, 256)),
        BadAnswer.html: HTML,
        BadAnswer.empty: b"",
        BadAnswer.utf8: text % b"\xff\xfe" + b"}]}",
        BadAnswer.half: text % b"half",
    }
    body = bodies[kind]
    if stream and kind in (BadAnswer.utf8, BadAnswer.half):
        body = b"data: %b\n\n" % (body if kind is BadAnswer.utf8 else text % b"half" + b"}]}")
    reply.send(200, body, [(b"content-type", content_type)])
