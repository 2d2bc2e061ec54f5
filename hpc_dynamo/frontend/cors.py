"""Cross-origin requests from web pages that `serve.allowed_origins` permits.

Browsers send a preflight, OPTIONS without a key, before a page's POST. They give a page only
responses that carry `Access-Control-Allow-Origin`. Source: https://fetch.spec.whatwg.org, CORS.
"""

from collections.abc import Collection, Mapping

from hpc_dynamo.http import Header, HttpRequest

METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
EXPOSED = b"x-request-id, retry-after"  # response headers that a page may read
MAX_AGE_S = b"600"  # time that a browser may cache a preflight
ANY = "*"


def is_preflight(request: HttpRequest) -> bool:
    """Return True for the preflight that a browser sends before a page's request."""
    names = request.headers.keys()
    return request.method == "OPTIONS" and {"origin", "access-control-request-method"} <= names


class Cors:
    """Headers for a set of allowed origins. Without origins no header is added."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any, self._origins = ANY in origins, frozenset(origins)

    @property
    def enabled(self) -> bool:
        return bool(self._origins)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Return True if the page that sent these headers may read responses."""
        return self._any or headers.get("origin") in self._origins

    def headers(self, request_headers: Mapping[str, str]) -> list[Header]:
        """Return the headers for every response, including errors and streams."""
        if not self.enabled:
            return []
        # Caches must not give the response for one origin to another.
        varied = [] if self._any else [(b"vary", b"Origin")]
        if "origin" not in request_headers or not self.allows(request_headers):
            return varied
        origin = b"*" if self._any else request_headers["origin"].encode("latin-1")
        exposed = (b"access-control-expose-headers", EXPOSED)
        return [(b"access-control-allow-origin", origin), exposed, *varied]

    def preflight(self, request_headers: Mapping[str, str]) -> list[Header]:
        """Return the additional headers of the response to a preflight."""
        requested = request_headers.get("access-control-request-headers", "").encode("latin-1")
        named = [(b"access-control-allow-headers", requested)] if requested else []
        methods = (b"access-control-allow-methods", METHODS)
        return [methods, *named, (b"access-control-max-age", MAX_AGE_S)]
