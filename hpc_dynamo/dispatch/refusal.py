"""Refusal of a request before it waits for a worker."""

import msgspec

from hpc_dynamo.errors import RequestFailed


def refusal(message: str, param: str | None = None) -> RequestFailed:
    """Return the error for a request or a field of it, in the form of vLLM's own errors."""
    error = {"message": message, "type": "BadRequestError", "param": param, "code": 400}
    return RequestFailed(message, status=400, body=msgspec.json.encode({"error": error}))
