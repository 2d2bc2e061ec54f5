"""Read JSON from clients with the same tolerance as the engines.

vLLM, SGLang and TensorRT-LLM parse request bodies with Python's `json`, which accepts more than
RFC 8259: a byte order mark, UTF-16 and UTF-32, `NaN`, `Infinity`, `1e400` and half a surrogate
pair. A body that an engine accepts must not fail here. msgspec is tried first because it is much
faster; Python's `json` reads what msgspec rejects.
"""

import json
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec

Fields = dict[str, msgspec.Raw]

MAX_DEPTH = 256  # nested arrays and objects; Python's own readers fail near 1,000

# Read at a time, so that no step holds Python's lock for long.
PIECE_BYTES = 1 << 20

# Longer content with half surrogate pairs that are not escaped is refused: Python decodes 10 MB in
# a second, and other threads wait for it.
MAX_SURROGATES_BYTES = 1 << 20

MANY = 20  # factor above which characters are counted without a look at strings

# Arrays, objects and their items in what only Python's `json` reads, which is 20 times slower.
MAX_LENIENT_VALUES = 100_000

TOO_DEEP = f"arrays and objects are nested more than {MAX_DEPTH} deep"

TOO_MANY = f"it is not strict UTF-8 JSON, and has more than {MAX_LENIENT_VALUES} values"

_FIELDS = msgspec.json.Decoder(Fields)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: 1 opens, -1 closes


class JsonError(ValueError):
    """The content is not JSON, is not an object where one is needed, or is nested too deeply."""


def read_value(content: bytes) -> Any:
    """Return the value of a JSON document. Raises JsonError, and nothing else."""
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_leniently(content)
    _check_depth(content)
    return value


def read_fields(content: bytes) -> Fields:
    """Return the fields of a JSON object, each value as its original bytes.

    Values of a body that only Python's `json` can read are encoded again, with the same meaning.
    Raises JsonError, and nothing else.
    """
    try:
        fields = _FIELDS.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _fields(_read_leniently(content))
    _check_depth(content)
    return fields


def _fields(value: Any) -> Fields:
    if not isinstance(value, dict):
        raise JsonError(f"a JSON object is needed, not {_kind(value)}")
    if not all(name.isascii() or is_text(name) for name in value):
        raise JsonError("the name of a field holds half a surrogate pair")
    return {name: msgspec.Raw(write_value(item)) for name, item in value.items()}


def is_text(value: str) -> bool:
    """Return True if a string can be encoded: it holds no half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_value(value: Any) -> bytes:
    """Encode what `read_value` returned. `NaN`, infinities and half surrogate pairs survive."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def is_null(fields: Fields, name: str) -> bool:
    """Return True if a field is absent or null. Clients send null for fields they do not set."""
    return bytes(fields.get(name, b"null")).strip() == b"null"


def nesting_depth(content: bytes) -> int:
    """Return the nesting depth of arrays and objects in UTF-8 JSON (unchecked)."""
    steps = _outside_strings(content, b"[]{}").translate(_STEPS)
    return max(accumulate(array("b", steps)), default=0)


def count_outside_strings(content: bytes, characters: bytes, enough: int) -> int:
    """Return how often UTF-8 JSON has one of these characters, if that is more than `enough`.

    Characters in strings are not counted, except above MANY times `enough`: such a text exceeds
    the context of any model, and the exact count is slow.
    """
    found = sum(content.count(character) for character in characters)
    if found <= enough or found > MANY * enough:
        return found
    return len(_outside_strings(content, characters))


def count_strings(content: bytes) -> int:
    """Return the number of strings in JSON."""
    return sum(piece.count(b'"') for piece in _without_escapes(content)) // 2


def only_ids(content: bytes) -> bool:
    """Return True if JSON consists of whole numbers, in lists or not."""
    return not content.strip(b"0123456789[], \t\r\n")


def _without_escapes(content: bytes) -> Iterator[bytes]:
    """Yield JSON without escaped backslashes and quotes: each quote is then an end of a string."""
    at = 0
    while at < len(content):
        piece = content[at : at + PIECE_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # it ends inside an escape
            piece = content[at : at + PIECE_BYTES + 1]
        at += len(piece)
        yield piece.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside_strings(content: bytes, characters: bytes) -> bytes:
    """Return only these characters of UTF-8 JSON, without those in strings."""
    others = bytes(set(range(256)) - set(characters) - {ord('"')})
    found, inside = bytearray(), 0  # `inside`: 1 if a piece begins in a string
    for piece in _without_escapes(content):
        # Two quotes with nothing between them change nothing, and a body may have millions.
        parts = piece.translate(None, others).replace(b'""', b"").split(b'"')
        found += b"".join(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2
    return bytes(found)


def _check_depth(content: bytes) -> None:
    """Raise JsonError if the nesting is too deep. Counting brackets is enough for most bodies."""
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > MAX_DEPTH and nesting_depth(content) > MAX_DEPTH:
        raise JsonError(TOO_DEEP)


def _read_leniently(content: bytes) -> Any:
    try:
        text = _decoded(content)
        encoded = text.encode("utf-8", "surrogatepass")
        if count_outside_strings(encoded, b",:[{", MAX_LENIENT_VALUES) > MAX_LENIENT_VALUES:
            raise JsonError(TOO_MANY)
        value = json.loads(text)
    except RecursionError as e:
        raise JsonError(TOO_DEEP) from e
    except JsonError:
        raise
    except ValueError as e:
        raise JsonError(_reason(content, e)) from e
    _check_depth(encoded)
    return value


def _decoded(content: bytes) -> str:
    encoding = json.detect_encoding(content)
    long = len(content) > MAX_SURROGATES_BYTES
    return content.decode(encoding, "strict" if long else "surrogatepass")


def _reason(content: bytes, error: ValueError) -> str:
    if not content.strip():
        return "it is empty"
    if content.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not {error.encoding} text: {error.reason} at byte {error.start}"
    return str(error)


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
