"""API key authentication and request ids."""

import hmac
import logging
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar

from hpc_dynamo.frontend.errors import ApiError

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
VALID_ID = re.compile(r"[!-~]{1,128}\Z")  # safe in a header and a log line

HINT = "the key is in the run folder's file api_key: Authorization: Bearer …"


class ApiKeyAuth:
    """Checks the API key of requests, in constant time."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def has_key(self, headers: dict[str, str]) -> bool:
        """Return True if a request has the API key."""
        try:
            self.check(headers)
        except ApiError:
            return False
        return True

    def check(self, headers: dict[str, str]) -> None:
        """Raises ApiError. Clients of /v1/messages send their key as x-api-key."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise ApiError(401, f"no API key was given; {HINT}", code="missing_api_key")
        if not hmac.compare_digest(key.encode(), self._key):
            raise ApiError(401, f"the API key is wrong; {HINT}", code="invalid_api_key")


def assign_request_id(headers: Mapping[str, str]) -> str:
    """Return the client's X-Request-Id, or a new one, and set it for the log lines of this task."""
    from_client = headers.get("x-request-id", "")
    request_id = from_client if VALID_ID.match(from_client) else os.urandom(16).hex()
    REQUEST_ID.set(request_id)
    return request_id


class RequestIdFilter(logging.Filter):
    """Adds the id of the current request to log records, as `request_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = REQUEST_ID.get()
        return True
