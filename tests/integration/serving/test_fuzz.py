"""Any input gets a response in the API's format, and the server survives."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.serving.served import Reply, Served

POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")
PASSED = (*POSTS, "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")


def explained(reply: Reply, path: str = "") -> Any:
    """Check the format of an error response."""
    assert 400 <= reply.status < 500, reply
    assert reply.headers["content-type"] == "application/json", reply
    assert reply.headers["x-request-id"], reply
    if path.startswith("/v1/messages") and "type" in reply.json:
        assert reply.json["type"] == "error"
    error = reply.json["error"]
    assert error["message"], reply
    assert error["type"], reply
    return error


def answered(reply: Reply, path: str) -> None:
    assert reply.headers["x-request-id"]
    if reply.status != 200:
        explained(reply, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("simulated") | JSON,
    "prompt": st.text(max_size=40) | st.lists(st.integers(0, 100), min_size=1) | JSON,
    "input": st.text(max_size=40) | JSON,
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "tool"]) | JSON},
            optional={"content": st.text(max_size=40) | JSON, "name": JSON, "tool_calls": JSON},
        ),
        max_size=3,
    )
    | JSON,
    "max_tokens": st.integers(1, 4) | JSON,
    "max_completion_tokens": st.integers(1, 4) | JSON,
    "stream": st.booleans() | JSON,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | JSON}) | JSON,
    "n": st.integers(0, 3) | JSON,
    "best_of": JSON,
    "logprobs": st.booleans() | st.integers(0, 5) | JSON,
    "temperature": st.floats(0, 2) | JSON,
    "stop": st.text(min_size=1, max_size=3) | JSON,
    "tools": JSON,
    "tool_choice": JSON,
    "response_format": JSON,
    "chat_template_kwargs": JSON,
    "add_generation_prompt": JSON,
    "kv_transfer_params": JSON,
    "tokens": st.lists(st.integers(0, 2**33), max_size=4) | JSON,
    "ignored": JSON,
}
BODIES = st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=8).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)
# Most bodies pass the first check only with the required fields.
NEEDED = ("prompt", "messages", "input", "tokens", "max_tokens")
LIKELY = st.fixed_dictionaries(
    {name: FIELDS[name] for name in NEEDED},
    optional={name: FIELDS[name] for name in sorted(FIELDS) if name not in NEEDED},
)


def encoded(body: Any) -> bytes:
    """Encode as JSON; half a surrogate pair is escaped, NaN is written as in JavaScript."""
    return json.dumps(body).encode()


@settings(max_examples=60)
@given(path=st.sampled_from(PASSED), body=(BODIES | LIKELY).map(encoded))
def test_any_json_body_gets_valid_response(served: Served, path: str, body: bytes) -> None:
    answered(served.ask("POST", path, body), path)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a valid request with some bytes changed, removed or inserted."""
    fair = {"prompt": "hello", "max_tokens": 1, "messages": [{"role": "user", "content": "hé"}]}
    body = bytearray(json.dumps(fair, ensure_ascii=False).encode())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        body += b"}" * (not body)
    return bytes(body)


@settings(max_examples=60)
@given(path=st.sampled_from(PASSED), body=damaged() | st.binary(max_size=40))
def test_any_bytes_get_valid_response(aggregated: Served, path: str, body: bytes) -> None:
    answered(aggregated.ask("POST", path, body), path)


DEEP = 20_000
WRONG = {
    "empty": b"",
    "no JSON": b"{not json",
    "cut": b'{"prompt": "hel',
    "an array": b"[1, 2]",
    "a number": b"7",
    "not UTF-8": b'{"prompt": "\xff\xfe", "max_tokens": 1}',
    "a model that is not UTF-8": b'{"model": "\xff", "prompt": "a"}',
    "a key that is not UTF-8": b'{"\xff": 1, "prompt": "a"}',
    "half a surrogate pair": b'{"model": "\\ud800", "prompt": "a"}',
    "deep arrays": b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"messages": ' + b'{"a":' * DEEP + b"1" + b"}" * (DEEP + 1),
    "deep elsewhere": b'{"prompt": "a", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a model that is a number": b'{"model": 7, "prompt": "a"}',
    "a long count": b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    "a large count": b'{"prompt": "a", "max_tokens": 1e308}',
    "a negative count": b'{"prompt": "a", "max_tokens": -1}',
    "a count that is text": b'{"prompt": "a", "max_tokens": "1"}',
    "stream is text": b'{"prompt": "a", "stream": "yes"}',
    "n is a list": b'{"prompt": "a", "n": []}',
    "messages are text": b'{"prompt": 1, "messages": "hello"}',
    "a byte order mark": b'\xef\xbb\xbf{"prompt": 7}',
    "UTF-16": '{"prompt": 7}'.encode("utf-16"),
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("case", sorted(WRONG))
def test_invalid_bodies_are_rejected(served: Served, path: str, case: str) -> None:
    explained(served.ask("POST", path, WRONG[case]))
