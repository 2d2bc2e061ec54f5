"""Errors as the clients of the two APIs expect them.

OpenAI: https://platform.openai.com/docs/guides/error-codes, the shape that engines use, too.
Anthropic (/v1/messages): https://docs.anthropic.com/en/api/errors.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.engine_errors import parse_engine_error
from hpc_dynamo.http.sse import DONE_EVENT
from hpc_dynamo.json_reader import JsonError, read_value

ERROR_TYPES = {
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
UNKNOWN_PATH_MESSAGE = (
    "Not Found"  # all that engines say where they have no such path (Starlette's phrase)
)


class ApiError(Exception):
    """A request that is answered with an error of our own."""

    def __init__(
        self, status: int, message: str, *, code: str | int | None = None,
        param: str | None = None, retry_after_s: float = 0.0, error_type: str | None = None,
        allowed_methods: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`kind` is the error's `type`; None derives it from the status. `allow` lists the methods
        that the path accepts."""
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        self.code, self.param, self.error_type, self.allowed_methods = (
            code,
            param,
            error_type,
            allowed_methods,
        )


def error_body(error: ApiError, path: str = "") -> bytes:
    """The body of an error."""
    return msgspec.json.encode(_object(error, path))


def error_event(error: ApiError, path: str) -> bytes:
    """The error as the last event of a stream that had begun, and the stream's end.

    The empty line first ends an event that was cut.
    """
    data = msgspec.json.encode(_object(error, path))
    if path.startswith(MESSAGES):
        return b"\n\nevent: error\ndata: %b\n\n" % data
    return b"\n\ndata: %b\n\n%b" % (data, DONE_EVENT)


def engine_error(status: int, body: bytes, message: str, path: str) -> ApiError:
    """Return an engine's error with the engine's own text; `message` if the engine gave none."""
    said = parse_engine_error(body)
    if status == 404 and said.message == UNKNOWN_PATH_MESSAGE:
        missing = f"the engine of this job has no endpoint {path}"
        return ApiError(404, missing, code="unknown_endpoint")
    return ApiError(
        status, said.message or message, code=said.code, param=said.param, error_type=said.type
    )


def engine_error_body(status: int, body: bytes, message: str, path: str) -> bytes:
    """Return the body for a failed request: the engine's own if it has the form that clients of
    `path` understand, else the engine's text in that form."""
    error = engine_error(status, body, message, path)
    understood = error.message == parse_engine_error(body).message and _has_form(body, path)
    return body if understood else error_body(error, path)


def _has_form(body: bytes, path: str) -> bool:
    try:
        known = read_value(body)
    except JsonError:
        return False
    if not isinstance(known, dict) or not isinstance(known.get("error"), dict):
        return False
    return known.get("type") == "error" or not path.startswith(MESSAGES)


def _object(error: ApiError, path: str) -> dict[str, Any]:
    usual = ERROR_TYPES.get(
        error.status, "server_error" if error.status >= 500 else ERROR_TYPES[400]
    )
    if path.startswith(MESSAGES):
        kind = usual.replace("server_error", "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    kind = error.error_type or usual
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": fields}
