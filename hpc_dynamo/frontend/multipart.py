"""Multipart forms (`multipart/form-data`, RFC 7578), such as audio. They are forwarded unchanged.

Engines parse a form once more. So only forms that every parser reads in the same way are accepted:
otherwise a reserved field could be hidden from the endpoint. No text is searched more than once.
"""

import re

from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.http import HttpRequest

MAX_FIELD_BYTES = 1000  # longer values are files
MAX_PARTS = 1000
MAX_PART_HEADER_BYTES = 8192

Fields = list[tuple[str, str]]

_CONTENT_TYPE = re.compile(r'multipart/form-data; ?boundary=("?)([\w\'()+,./:=?-]{1,70})\1', re.I)
_HEADER = re.compile(rb"([\w-]+):[ \t]*([\x20-\xff]*)")
_DISPOSITION = re.compile(
    rb'form-data; ?name=(?:"([^"\\]*)"|([\w\[\].-]+))((?:; ?filename\*?=(?:"[^"]*"|[^";]+)){0,2})',
    re.I,
)


def is_multipart(request: HttpRequest) -> bool:
    """Return True if the body is a form, which is forwarded with its own content type.

    Other bodies are read as JSON regardless of their declared type: `curl -d` declares JSON as a
    form. Hence the check for the delimiter.
    """
    content_type = request.headers.get("content-type", "").lower()
    return content_type.startswith("multipart/form-data") and request.body.startswith(b"--")


def form_fields(request: HttpRequest) -> Fields:
    """Return name and first line of each part, in order; a name may repeat. The content of a file
    is not returned. Raises ApiError."""
    content_type = _CONTENT_TYPE.fullmatch(request.headers["content-type"])
    if not content_type:
        raise ApiError(400, "the content type of a form is multipart/form-data; boundary=…")
    boundary = content_type[2].encode()
    parts = (b"\r\n" + request.body).split(b"\r\n--" + boundary, MAX_PARTS + 1)[1:]
    fields = Fields()
    for part in parts:
        if part.startswith(b"--") and len(fields) < MAX_PARTS:
            return fields
        fields.append(_field(part, len(fields) + 1))
    raise ApiError(400, f"the form has no end after {len(fields)} parts")


def _field(part: bytes, number: int) -> tuple[str, str]:
    head, _, content = part[: MAX_PART_HEADER_BYTES + MAX_FIELD_BYTES].partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    headers = [_HEADER.fullmatch(line) for line in lines]
    kinds = [h[2] for h in headers if h and h[1].lower() == b"content-disposition"]
    named = _DISPOSITION.fullmatch(kinds[0]) if len(kinds) == 1 else None
    if start or not all(headers) or not named:
        what = 'expected is content-disposition: form-data; name="…"; filename="…"'
        raise ApiError(400, f"part {number} of the form is not readable ({what})")
    is_file = named[3].lower().lstrip(b"; ").startswith(b"filename=")
    value = b"" if is_file else content[:MAX_FIELD_BYTES].split(b"\r\n", 1)[0]
    return (named[1] or named[2] or b"").decode(errors="replace"), value.decode(errors="replace")
