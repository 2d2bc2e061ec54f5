"""Multipart forms (`multipart/form-data`), such as audio. They are forwarded unchanged."""

import re

from hpc_dynamo.http import HttpRequest

MAX_FIELD_BYTES = 1000  # longer values are files

_PART = re.compile(
    rb'\r\ncontent-disposition:[^\r\n]*?\bname="?([^";\r\n]+)"?[^\r\n]*\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]{0,%d})" % MAX_FIELD_BYTES,
    re.IGNORECASE,
)


def is_multipart(request: HttpRequest) -> bool:
    """Return True if the body is a form, which is forwarded with its own content type.

    Other bodies are read as JSON regardless of their declared type: `curl -d` declares JSON as a
    form. Hence the check for the delimiter.
    """
    content_type = request.headers.get("content-type", "").lower()
    return content_type.startswith("multipart/form-data") and request.body.startswith(b"--")


def form_fields(content: bytes) -> dict[str, str]:
    """Return the first line of each field of a multipart form, by name."""
    return {
        name.replace(b"\\", b"").decode(errors="replace"): value.decode(errors="replace")
        for name, value in _PART.findall(content)
    }
