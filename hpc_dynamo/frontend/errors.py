"""Errors as the clients of the two APIs expect them.

OpenAI: https://platform.openai.com/docs/guides/error-codes, the shape that engines use, too.
Anthropic (/v1/messages): https://docs.anthropic.com/en/api/errors.
"""

from typing import Any

import msgspec

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
MESSAGES = "/v1/messages"
NOWHERE = "Not Found"  # all that engines say where they have no such path (Starlette's phrase)


class Refused(Exception):
    """A request that is answered with an error of our own."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        self.code, self.param = code, param


def content(error: Refused, path: str = "") -> bytes:
    """The body of an error."""
    return msgspec.json.encode(_object(error, path))


def event(error: Refused, path: str) -> bytes:
    """The error as the last event of a stream that had begun, and the stream's end.

    The empty line first ends an event that was cut.
    """
    data = msgspec.json.encode(_object(error, path))
    if path.startswith(MESSAGES):
        return b"\n\nevent: error\ndata: %b\n\n" % data
    return b"\n\ndata: %b\n\ndata: [DONE]\n\n" % data


def engine_content(status: int, body: bytes, message: str, path: str) -> bytes:
    """An engine's own error: as it came, if it has the form that clients of `path` understand."""
    known = _read(body)
    if status == 404 and _words(known) == NOWHERE:
        missing = f"the engine of this job has no endpoint {path}"
        return content(Refused(404, missing, code="unknown_endpoint"), path)
    understood = known.get("type") == "error" if path.startswith(MESSAGES) else "error" in known
    return body if understood else content(Refused(status, _words(known) or message), path)


def _read(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _words(known: dict[str, Any]) -> str:
    """What an engine says, in OpenAI's form or in FastAPI's own."""
    error = known.get("error", known.get("detail"))
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""


def _object(error: Refused, path: str) -> dict[str, Any]:
    kind = KINDS.get(error.status, "server_error" if error.status >= 500 else KINDS[400])
    if path.startswith(MESSAGES):
        kind = kind.replace("server_error", "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": fields}
