"""Cross-origin requests: which web pages may call the endpoint (`serve.allowed_origins`).

Browsers send a preflight, OPTIONS without a key, before a page's POST. They show a page only
answers that carry `Access-Control-Allow-Origin`. Source: https://fetch.spec.whatwg.org, CORS.
"""

from collections.abc import Collection, Mapping

from hpc_dynamo.http import Header, HttpRequest

METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
EXPOSED = b"x-request-id, retry-after"  # headers of answers that a page may read
MAX_AGE_S = b"600"  # how long a browser may remember a preflight
ANY = "*"


def is_preflight(request: HttpRequest) -> bool:
    """Return True for the preflight that a browser sends before a page's request."""
    asked = request.headers
    return (
        request.method == "OPTIONS"
        and "origin" in asked
        and "access-control-request-method" in asked
    )


class Cors:
    """Headers for a set of allowed origins. Without origins no header is added."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any, self._origins = ANY in origins, frozenset(origins)

    @property
    def enabled(self) -> bool:
        return bool(self._origins)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Return True if the page that sent these headers may read answers."""
        return self._any or headers.get("origin") in self._origins

    def headers(self, asked: Mapping[str, str]) -> list[Header]:
        """Return the headers of every answer, errors and streams included."""
        if not self.enabled:
            return []
        # Caches must not give one origin's answer to another.
        varied = [] if self._any else [(b"vary", b"Origin")]
        if "origin" not in asked or not self.allows(asked):
            return varied
        origin = b"*" if self._any else asked["origin"].encode("latin-1")
        exposed = (b"access-control-expose-headers", EXPOSED)
        return [(b"access-control-allow-origin", origin), exposed, *varied]

    def preflight(self, asked: Mapping[str, str]) -> list[Header]:
        """Return the additional headers of an answer to a preflight."""
        wanted = asked.get("access-control-request-headers", "").encode("latin-1")
        named = [(b"access-control-allow-headers", wanted)] if wanted else []
        methods = (b"access-control-allow-methods", METHODS)
        return [methods, *named, (b"access-control-max-age", MAX_AGE_S)]
