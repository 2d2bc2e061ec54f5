"""Bodies with very many small items are refused before they are decoded."""

import json
from typing import Any

import pytest

from hpc_dynamo.engines import MAX_IDS
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.request_translator import read_body
from hpc_dynamo.json_reader import count_outside_strings

LIMIT = 100
MESSAGE = {"role": "user", "content": "hi"}

REFUSED: dict[str, dict[str, Any]] = {
    "messages": {"messages": [MESSAGE] * 101},
    "prompts": {"prompt": ["a"] * 101},
    "prompts of tokens": {"prompt": [[1]] * 101},
    "inputs": {"input": ["a"] * 101},
    "documents": {"documents": ["a, b"] * 101},
    "content parts": {"messages": [{"role": "user", "content": [{"type": "text"}] * 101}]},
    "tools": {"messages": [MESSAGE], "tools": [{}] * 101},
    "nested": {"x": [[[]]] * 60},
    "names of fields": {f"k{i}": 1 for i in range(401)},
    "names of tokens": {"prompt": "a", "logit_bias": {str(i): 1 for i in range(401)}},
    "names in several objects": {"x": [{str(i): 1 for i in range(50)}] * 9},
}
ACCEPTED: dict[str, dict[str, Any]] = {
    "token ids": {"prompt": list(range(5000))},
    "brackets in a text": {"prompt": '{["\\' * 900},
    "colons in a text": {"prompt": '12:34 \\"::' * 900},
    "names of fields": {"messages": [MESSAGE | {"name": "a"}] * 98},
    "commas in a text": {"prompt": [", " * 5000]},
    "messages": {"messages": [MESSAGE] * 98},
    "prompts": {"prompt": ["a"] * 100},
    "a number": {"prompt": 7},
    "null": {"prompt": None},
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("indent", [None, 2])
def test_many_items_are_refused(body: dict[str, Any], indent: int | None) -> None:
    content = json.dumps(body, indent=indent).encode()
    with pytest.raises(ApiError, match=r"serve\.max_items_per_request") as error:
        read_body(content, LIMIT)
    assert error.value.status == 400


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_long_texts_and_token_ids_are_accepted(body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    read_body(content, LIMIT)


def test_brackets_in_strings_are_not_counted() -> None:
    content = json.dumps({'a{"': ['\\"[[[[', {"b": "\\\\{"}]}).encode()
    assert count_outside_strings(content, b"[{", 2) == 3


MANY = b"1," * (MAX_IDS + 1) + b"1"


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "stop_token_ids": [%b]}' % MANY,
        b'{"prompt": ["url", %b]}' % MANY,
        b'{"messages": [%b]}' % MANY.replace(b"1", b'"ab"'),
        b'{"input": [%b], "x": [%b]}' % (MANY, MANY),
    ],
    ids=["ids of another field", "text before ids", "texts", "two fields"],
)
def test_many_values_are_refused(body: bytes) -> None:
    """Values of a body of 32 MB took seconds and gigabytes."""
    with pytest.raises(ApiError, match=f"at most {MAX_IDS} are accepted"):
        read_body(body, LIMIT)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": [%b]}' % MANY,
        b'{"input": [[%b], [%b]]}' % (MANY, MANY),
        b'{"prompt": "%b", "stop": [","]}' % MANY,
    ],
    ids=["prompt", "inputs", "commas in a text"],
)
def test_many_token_ids_are_accepted(body: bytes) -> None:
    read_body(body, LIMIT)
