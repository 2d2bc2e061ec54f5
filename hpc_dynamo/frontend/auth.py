"""Who may ask, and under which id an answer is logged."""

import hmac
import logging
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar

from hpc_dynamo.frontend.errors import ApiError

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
PLAIN = re.compile(r"[!-~]{1,128}\Z")  # fit for a header and a line of a log

HINT = "the key is in the run folder's file api_key: Authorization: Bearer …"


class ApiKeyAuth:
    """Compares keys in constant time."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def check(self, headers: dict[str, str]) -> None:
        """Raises Refused. Clients of /v1/messages send their key as x-api-key."""
        given = headers.get("authorization", "")
        scheme, _, token = given.partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise ApiError(401, f"no API key was given; {HINT}", code="missing_api_key")
        if not hmac.compare_digest(key.encode(), self._key):
            raise ApiError(401, f"the API key is wrong; {HINT}", code="invalid_api_key")


def assign_request_id(headers: Mapping[str, str]) -> str:
    """The client's X-Request-Id, or a new one; it goes into every line that is logged."""
    given = headers.get("x-request-id", "")
    own = given if PLAIN.match(given) else os.urandom(16).hex()
    REQUEST_ID.set(own)
    return own


class RequestIdFilter(logging.Filter):
    """Gives log records the id of the request that they are about, as `request_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = REQUEST_ID.get()
        return True
