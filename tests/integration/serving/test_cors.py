"""Cross-origin requests of browsers, off by default."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.serving.routed import routing
from tests.integration.serving.served import Headers, Reply, Served
from tests.support.paths_engine import MODEL, started

ALLOWED, OTHER = "https://chat.example.org", "http://localhost:3000"
STREAM = {"model": MODEL, "prompt": "x", "stream": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Return a run for each value of the setting."""
    values = {"none": "[]", "exact": f"['{ALLOWED}','https://b.org:8443']", "any": "['*']"}
    with ExitStack() as stack:
        url = stack.enter_context(started("one"))
        found = dict[str, Served]()
        for name, value in values.items():
            words = ("--workers", url, f"model.name={MODEL}", f"serve.allowed_origins={value}")
            run = routing(tmp_path_factory.mktemp(name), *words)
            found[name] = stack.enter_context(run)
        yield found


def preflight(served: Served, origin: str, path: str = "/v1/chat/completions") -> Reply:
    """Send a preflight without a key, as browsers do before a page's POST."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-session-id",
    }
    return served.ask("OPTIONS", path, headers=asked)


def cors(reply: Reply) -> dict[str, str]:
    return {k: v for k, v in reply.headers.items() if k.startswith("access-control") or k == "vary"}


def test_preflight_needs_no_key(runs: dict[str, Served]) -> None:
    reply = preflight(runs["exact"], ALLOWED)
    assert (reply.status, reply.body) == (204, b"")
    assert "content-length" not in reply.headers
    assert cors(reply) == {
        "access-control-allow-origin": ALLOWED,
        "access-control-allow-methods": "GET, HEAD, POST, DELETE, OPTIONS",
        "access-control-allow-headers": "authorization,content-type,x-session-id",
        "access-control-expose-headers": "x-request-id, retry-after",
        "access-control-max-age": "600",
        "vary": "Origin",
    }
    assert preflight(runs["any"], OTHER).headers["access-control-allow-origin"] == "*"
    assert preflight(runs["exact"], ALLOWED, "/v1/unknown").status == 204


@pytest.mark.parametrize(
    ("name", "origin", "expected"),
    [
        ("exact", ALLOWED, ALLOWED),
        ("exact", "https://b.org:8443", "https://b.org:8443"),
        ("exact", "https://b.org", None),
        ("exact", OTHER, None),
        ("exact", f"{ALLOWED}.evil.org", None),
        ("exact", "null", None),
        ("any", OTHER, "*"),
        ("any", "null", "*"),
        ("none", ALLOWED, None),
    ],
)
def test_every_response_has_cors_headers(
    runs: dict[str, Served], name: str, origin: str, expected: str | None
) -> None:
    served = runs[name]
    key = {"Authorization": f"Bearer {served.key}", "Origin": origin}
    replies = {
        200: served.post("/v1/completions", STREAM, key),
        401: served.post("/v1/completions", STREAM, {"Origin": origin}),
        404: served.ask("GET", "/nothing", headers=key),
        405: served.ask("PUT", "/v1/models", headers=key),
        400: served.ask("POST", "/v1/completions", b"{", key),
        431: served.ask("GET", "/v1/models", headers=key | {"X-Long": "x" * 70_000}),
    }
    for status, reply in replies.items():
        assert reply.status == status
        assert reply.headers.get("access-control-allow-origin") == expected
        assert reply.headers.get("vary") == ("Origin" if name == "exact" else None)
    assert b"[DONE]" in replies[200].body


def test_preflight_of_other_origin_is_rejected(runs: dict[str, Served]) -> None:
    reply = preflight(runs["exact"], OTHER)
    assert reply.status == 403
    assert "serve.allowed_origins" in reply.json["error"]["message"]
    assert "access-control-allow-origin" not in reply.headers


def test_cors_without_origins_adds_no_headers(runs: dict[str, Served]) -> None:
    assert preflight(runs["none"], ALLOWED).status == 401
    assert not cors(preflight(runs["none"], ALLOWED))


def test_non_browser_clients_are_unaffected_by_cors(runs: dict[str, Served]) -> None:
    for served in runs.values():
        assert served.ask("GET", "/v1/models").status == 200
        own: Headers = {"Authorization": f"Bearer {served.key}"}
        assert served.ask("OPTIONS", "/v1/models", headers=own).status == 405
