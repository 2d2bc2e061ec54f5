"""Errors that clients of the simulator receive, in OpenAI's form with vLLM's type names."""

from typing import Any

import msgspec

from hpc_dynamo.http import ResponseWriter

JSON = (b"content-type", b"application/json")


class RequestRejected(Exception):
    """A request that cannot be served. `status` and `body` are the HTTP response."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, status, param)


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return the JSON body of an error. `param` is the request field that caused it."""
    types = {401: "AuthenticationError", 404: "NotFoundError"}
    kind = types.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def send_json(reply: ResponseWriter, body: Any, status: int = 200) -> None:
    """Send a complete JSON response."""
    reply.send(status, msgspec.json.encode(body), [JSON])
