"""Head of a request (RFC 9110, RFC 9112): its target, and headers that are repeated."""

import re

# Headers with one value. Of two different values a proxy in front of this server might read the
# other one, which allows request smuggling (RFC 9112, 11.2). Such a request is rejected.
SINGLE_VALUE_HEADERS = frozenset(
    {
        "access-control-request-method", "authorization", "content-length", "content-type",
        "host", "max-forwards", "origin", "referer", "user-agent", "x-api-key", "x-request-id",
    }
)  # fmt: skip

PIECE_BYTES = 4096

_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


def split_target(target: str) -> tuple[str, str]:
    """Return path and query of a request target in origin-form (`/v1/models?a=b`) or in
    absolute-form, as clients of proxies send it (`http://host/v1/models`; RFC 9112, 3.2.2)."""
    if absolute := _ABSOLUTE.match(target):
        target = target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"
    path, _, query = target.partition("?")
    return path, query


def request_line(method: bytes, target: bytes) -> tuple[str, str, str]:
    """Return method, path and query."""
    path, query = split_target(target.decode("latin-1"))
    return method.decode("latin-1"), path, query


def head_without_upgrade(method: bytes, target: bytes, headers: dict[str, str]) -> bytes:
    """Return the head of a request without the offer of another protocol."""
    kept = [(k, v) for k, v in headers.items() if k not in ("upgrade", "connection")]
    lines = b"".join(f"{k}: {v}\r\n".encode("latin-1") for k, v in kept)
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines)


def add_header(headers: dict[str, str], name: str, value: str) -> bool:
    """Add one header line to `headers`. Lines of the same name become one list (RFC 9110, 5.3).

    Return False if the header takes one value and already has a different one.
    """
    before = headers.get(name)
    if before is None:
        headers[name] = value
        return True
    if name in SINGLE_VALUE_HEADERS:
        return before == value and name != "host"
    headers[name] = f"{before}; {value}" if name == "cookie" else f"{before}, {value}"
    return True


def pieces(data: bytes, requests: int) -> list[bytes]:
    """Return the data in small pieces if more than `requests` requests may begin in it.

    A request takes 30 times the memory of its shortest head.
    """
    if data.count(b"HTTP/") <= requests:
        return [data]
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
