"""Errors in the formats of the two client APIs.

OpenAI (also used by engines): https://platform.openai.com/docs/guides/error-codes.
Anthropic (/v1/messages): https://docs.anthropic.com/en/api/errors.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.engine_errors import has_reason, parse_engine_error
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
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SEQUENCE_NUMBER = re.compile(rb'"sequence_number": ?([0-9]+)')
UNKNOWN_PATH_MESSAGE = "Not Found"  # Starlette's message for an unknown path


class ApiError(Exception):
    """Error response of the endpoint to a request."""

    def __init__(
        self, status: int, message: str, *, code: str | int | None = None,
        param: str | None = None, retry_after_s: float = 0.0, error_type: str | None = None,
        allowed_methods: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`error_type` is the `type` field; None derives it from the status. `allowed_methods` are
        those that the path accepts. `retry_after_s` is sent with status 429 and 503."""
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s
        self.code, self.param, self.error_type, self.allowed_methods = (
            code,
            param,
            error_type,
            allowed_methods,
        )


def error_body(error: ApiError, path: str = "") -> bytes:
    """Return the body of an error response."""
    return msgspec.json.encode(_object(error, path))


def error_event(error: ApiError, path: str, before: bytes = b"") -> bytes:
    """Return the error as the last event of a stream, and the end of the stream.

    The empty line at the start ends an incomplete event. `before` are the last events that were
    sent: those of /v1/responses are numbered.
    """
    content = _object(error, path)
    if path == RESPONSES:
        numbers = SEQUENCE_NUMBER.findall(before)
        content = {"type": "error", "sequence_number": int(numbers[-1]) + 1 if numbers else 0}
        content |= {"code": _code(error), "message": error.message, "param": error.param}
    data = msgspec.json.encode(content)
    if path == RESPONSES or path.startswith(MESSAGES):
        return b"\n\nevent: error\ndata: %b\n\n" % data
    return b"\n\ndata: %b\n\n%b" % (data, DONE_EVENT)


def engine_error(status: int, body: bytes, message: str, path: str) -> ApiError:
    """Return an engine's error with the own message, or `message` if it has no reason."""
    parsed = parse_engine_error(body)
    if status == 404 and parsed.message == UNKNOWN_PATH_MESSAGE:
        missing = f"the engine of this job has no endpoint {path}"
        return ApiError(404, missing, code="unknown_endpoint")
    return ApiError(
        status,
        parsed.message if has_reason(parsed) else message,
        code=parsed.code,
        param=parsed.param,
        error_type=parsed.type,
    )


def engine_error_body(status: int, body: bytes, message: str, path: str) -> bytes:
    """Return the error body for clients of `path`.

    It is the engine's own body if that has the format of the API, else the engine's message in that
    format.
    """
    error = engine_error(status, body, message, path)
    unchanged = error.message == parse_engine_error(body).message and _has_format(body, path)
    return body if unchanged else error_body(error, path)


def _has_format(body: bytes, path: str) -> bool:
    try:
        value = read_value(body)
    except JsonError:
        return False
    if not isinstance(value, dict) or not isinstance(value.get("error"), dict):
        return False
    return value.get("type") == "error" or not path.startswith(MESSAGES)


def _code(error: ApiError) -> str:
    return str(error.code or error.error_type or ERROR_TYPES.get(error.status, "server_error"))


def _object(error: ApiError, path: str) -> dict[str, Any]:
    default = ERROR_TYPES.get(
        error.status, "server_error" if error.status >= 500 else ERROR_TYPES[400]
    )
    if path.startswith(MESSAGES):
        kind = default.replace("server_error", "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    kind = error.error_type or default
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": fields}
