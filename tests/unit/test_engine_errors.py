"""Error bodies of engines and proxies in every known form."""

import json
from typing import Any

import pytest

from hpc_dynamo.engine_errors import (
    MAX_MESSAGE_CHARS,
    EngineErrorText,
    append_engine_error,
    parse_engine_error,
)

NESTED = {"message": "too long", "type": "BadRequestError", "param": "prompt", "code": 400}
MISSING = {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"error": NESTED}, EngineErrorText("too long", "BadRequestError", "prompt", 400)),
        # SGLang and TensorRT-LLM
        (
            {"object": "error", **NESTED},
            EngineErrorText("too long", "BadRequestError", "prompt", 400),
        ),
        ({"object": "error", "message": "bad", "code": 400}, EngineErrorText("bad", code=400)),
        # SGLang, in a stream
        (
            {"error": {"object": "error", **NESTED}},
            EngineErrorText("too long", "BadRequestError", "prompt", 400),
        ),
        # Anthropic
        (
            {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}},
            EngineErrorText("no", "invalid_request_error"),
        ),
        # FastAPI
        ({"detail": "Not Found"}, EngineErrorText("Not Found")),
        (
            {"detail": [MISSING]},
            EngineErrorText("messages.0.role: Field required", param="messages.0.role"),
        ),
        (
            {"detail": [MISSING, {"loc": ["body"], "msg": "no"}]},
            EngineErrorText("messages.0.role: Field required; no", param="messages.0.role"),
        ),
        ({"detail": {"message": "busy", "code": "x"}}, EngineErrorText("busy", code="x")),
        # gateways
        ({"error": "no healthy upstream"}, EngineErrorText("no healthy upstream")),
        ({"error": "Bad Request", "message": "n > 1"}, EngineErrorText("n > 1")),
        ({"message": "rate limited"}, EngineErrorText("rate limited")),
        (
            [{"error": {"message": "in a list", "code": 429}}],
            EngineErrorText("in a list", code=429),
        ),
        ("a string", EngineErrorText("a string")),
        ({"error": {"message": None, "code": True}}, EngineErrorText()),
        ({"error": None}, EngineErrorText()),
        ({}, EngineErrorText()),
        (None, EngineErrorText()),
        (17, EngineErrorText()),
    ],
)
def test_parse_engine_error_reads_json_forms(value: Any, expected: EngineErrorText) -> None:
    assert parse_engine_error(json.dumps(value).encode()) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", ""),
        (b"  \n", ""),
        (b"Internal Server Error", "Internal Server Error"),
        (b"plain \xff bytes", "plain � bytes"),
        (
            b"<html><head><title>502 Bad Gateway</title></head><body>"
            b"<center><h1>502 Bad Gateway</h1></center><hr>nginx &amp; co</body></html>",
            "502 Bad Gateway nginx & co",
        ),
        (b"<!DOCTYPE html><title>Only a title</title>", "Only a title"),
        (b"a < b and c > d", "a < b and c > d"),
        (b"[" * 100_000, "[" * MAX_MESSAGE_CHARS + "…"),
    ],
)
def test_parse_engine_error_reads_text_and_html(body: bytes, message: str) -> None:
    assert parse_engine_error(body).message == message


def test_parse_engine_error_omits_the_place_in_the_engines_source() -> None:
    """As SGLang 0.5.23 answered to `"n": null`."""
    error = "1 validation error:\n  {'loc': ('body', 'n'), 'msg': 'Input should be an integer'}"
    place = '\n\n  File "/env/site-packages/sglang/http_server.py", line 1860, in completions\n'
    body = {"object": "error", "message": f"{error}{place}    POST /v1/completions [{{}}]"}
    assert parse_engine_error(json.dumps(body).encode()).message == error


def test_append_engine_error_without_text_returns_message() -> None:
    assert (
        append_engine_error("worker 0 answered 400", b'{"detail":"no"}')
        == "worker 0 answered 400: no"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", ""), (b"Internal Server Error", ": Internal Server Error"), (b"{}", "")],
)
def test_error_without_reason_refers_to_log(body: bytes, said: str) -> None:
    found = append_engine_error("worker 0 answered 502", body)
    assert found == f"worker 0 answered 502{said}; the log of the engine may have the reason"
