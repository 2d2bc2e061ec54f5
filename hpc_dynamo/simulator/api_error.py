"""The errors that clients see, in OpenAI's form with vLLM's names."""

from typing import Any


class Refused(Exception):
    """A request that cannot be served: status and a body in OpenAI's form."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, status, param)


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    kinds = {401: "AuthenticationError", 404: "NotFoundError"}
    kind = kinds.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
