"""The JSON reader accepts what Python's `json` accepts, and raises only JsonError."""

import json
import math
import re
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.json_reader import (
    MAX_DEPTH,
    MAX_LENIENT_VALUES,
    MAX_SURROGATES_BYTES,
    PIECE_BYTES,
    JsonError,
    count_outside_strings,
    is_null,
    nesting_depth,
    read_fields,
    read_value,
    write_value,
)


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "é🙂"}'.encode("utf-16"), {"a": "é🙂"}),
        ('{"a": "é🙂"}'.encode("utf-16-le"), {"a": "é🙂"}),
        ('{"a": "é🙂"}'.encode("utf-32"), {"a": "é🙂"}),
        (b'{"a": 1e400}', {"a": math.inf}),
        (b'{"a": Infinity, "b": -Infinity}', {"a": math.inf, "b": -math.inf}),
        (rb'{"a": "\ud83d"}', {"a": "\ud83d"}),
        (rb'{"a": "\ud83d\ude00"}', {"a": "😀"}),
        (b'{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"null", None),
        (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
    ],
)
def test_reader_accepts_what_engines_accept(content: bytes, expected: Any) -> None:
    assert read_value(content) == expected
    if isinstance(expected, dict):
        fields = read_fields(content)
        assert {k: json.loads(bytes(v)) for k, v in fields.items()} == expected
        assert json.loads(msgspec.json.encode(fields)) == expected


def test_reader_accepts_nan() -> None:
    assert math.isnan(read_value(b'{"a": NaN}')["a"])
    assert msgspec.json.encode(read_fields(b'{"a": NaN, "b": "x"}')) == b'{"a":NaN,"b":"x"}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "Expecting property name"),
        (b'{"a": 1}}', "Extra data"),
        (b'{"a": "x\ny"}', "Invalid control character"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b'{"a": "\xff"} x', "not utf-8 text: invalid start byte at byte 7"),
        (b'{"a": ' + b"9" * 5000 + b"x", "4300 digits"),
        (nested(MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (nested(3000), f"nested more than {MAX_DEPTH} deep"),
        (b"[" * 90_000, f"nested more than {MAX_DEPTH} deep"),
        (nested(3000).decode().encode("utf-16"), f"nested more than {MAX_DEPTH} deep"),
        (nested(300).replace(b"1", b"NaN"), f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_reader_rejects_with_reason(content: bytes, reason: str) -> None:
    for read in (read_value, read_fields):
        with pytest.raises(JsonError, match=reason.replace("{", r"\{")):
            read(content)


@pytest.mark.parametrize(
    ("content", "kind"), [(b"[1]", "array"), (b"3", "number"), (b'"x"', "str")]
)
def test_read_fields_requires_object(content: bytes, kind: str) -> None:
    with pytest.raises(JsonError, match=kind):
        read_fields(content)


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    code = '{"a": "' + "[" * 5000 + r"\"[[{{" + '"}'
    assert nesting_depth(code.encode()) == 1
    assert read_value(code.encode()) == json.loads(code)
    assert read_value(code.encode("utf-16")) == json.loads(code)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_slow_reader_is_for_few_values(encoding: str) -> None:
    many = "1," * MAX_LENIENT_VALUES + "NaN"
    for content in (f'{{"a": [{many}]}}', f'{{"a": [{many}'):
        with pytest.raises(JsonError, match=f"more than {MAX_LENIENT_VALUES} values"):
            read_fields(content.encode(encoding))
    text = f'{{"a": "{many}", "b": NaN}}'.encode(encoding)
    assert len(read_value(text)["a"]) == len(many)


def test_many_siblings_do_not_count_as_nesting() -> None:
    assert len(read_value(b"[" + b"[]," * 5000 + b"[]]")) == 5001


def test_null_field_counts_as_unset() -> None:
    fields = read_fields(b'{"a": null, "b":  null , "c": 0, "d": "null"}')
    assert [is_null(fields, name) for name in ("a", "b", "c", "d", "e")] == [
        *(True, True, False, False, True)
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_written_value_reads_back(value: Any) -> None:
    assert read_value(write_value(value)) == value


def test_written_text_is_not_longer_than_what_was_read() -> None:
    """A body of 28 MB with `NaN` took 90 MB for the time of its request."""
    text = "\u00e9\u4e2d\U0001f642" * 9
    assert write_value(text) == f'"{text}"'.encode()
    assert write_value([text, "\ud800"]).endswith(rb',"\ud800"]')


@given(VALUES)
def test_characters_in_strings_are_not_counted(value: Any) -> None:
    content = json.dumps({'"\\:': value, ":,": '""', "": [":", "", '\\"']}).encode()
    for characters in (b":", b"[{", b",:[{"):
        outside = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content)
        expected = sum(outside.count(character) for character in characters)
        assert count_outside_strings(content, characters, expected - 1) == expected


@given(st.binary())
def test_any_bytes_are_read_or_raise_json_error(content: bytes) -> None:
    for read in (read_value, read_fields):
        with suppress(JsonError):
            read(content)


@pytest.mark.parametrize("shift", range(6))
def test_escapes_between_two_pieces_are_counted_right(shift: int) -> None:
    long = "x" * (PIECE_BYTES - 12 + shift)
    content = rb'{"a": "' + long.encode() + rb'\\\"[[\"[\\", "b": [1, {}]}'
    json.loads(content)
    assert count_outside_strings(content, b"[{", 2) == 3
    assert nesting_depth(content) == 3


def test_long_text_with_half_surrogate_pairs_is_refused() -> None:
    """The decoder needed 3 s for 32 MB, in which no other thread ran."""
    half = "\ud800".encode("utf-16-be", "surrogatepass")
    text = half * 10 + "a".encode("utf-16-be") * (MAX_SURROGATES_BYTES // 2)
    content = '{"a": "'.encode("utf-16-be") + text + '"}'.encode("utf-16-be")
    for read in (read_value, read_fields):
        with pytest.raises(JsonError, match="not utf-16"):
            read(content)
        read(content[: len(content) - 2 * MAX_SURROGATES_BYTES // 4 - 4] + '"}'.encode("utf-16-be"))
