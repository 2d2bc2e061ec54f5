"""Forms (`multipart/form-data`), used by clients to send audio. They are forwarded unchanged."""

import re

from hpc_dynamo.http import HttpRequest

LONGEST_VALUE = 1000  # bytes; longer ones are files

_PART = re.compile(
    rb'\r\ncontent-disposition:[^\r\n]*?\bname="?([^";\r\n]+)"?[^\r\n]*\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]{0,%d})" % LONGEST_VALUE,
    re.IGNORECASE,
)


def is_multipart(request: HttpRequest) -> bool:
    """Return True if the body is a form, which is forwarded with its own content type.

    Other bodies are read as JSON, whatever their type: `curl -d` declares JSON a form. The
    delimiter is searched for, so that JSON declared as a form is still read.
    """
    kind = request.headers.get("content-type", "").lower()
    return kind.startswith("multipart/form-data") and request.body.startswith(b"--")


def form_fields(content: bytes) -> dict[str, str]:
    """Return the first line of each field of a multipart form, by name."""
    found = _PART.findall(content)
    return {
        name.replace(b"\\", b"").decode(errors="replace"): value.decode(errors="replace")
        for name, value in found
    }
