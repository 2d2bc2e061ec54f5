"""The smallest JSON that a JSON schema allows: what the simulator says where one is asked for.

The common part of JSON Schema 2020-12; what it cannot satisfy for sure (`pattern`, `not`) is
refused.
"""

import json
import math
from typing import Any

from hpc_dynamo.simulator.api_error import Refused

Schema = dict[str, Any] | bool

DEEPEST = 32  # required references that go round in circles have no instance
LONGEST = 10_000  # of a text or an array that has to have a length
FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "a@example.org",
    "uri": "http://example.org",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "ipv4": "127.0.0.1",
    "hostname": "example.org",
}


def instance(schema: Schema | None) -> str:
    """JSON text, ASCII alone. Raises Refused for a schema that is wrong or beyond this."""
    try:
        return json.dumps(_value({} if schema is None else schema, schema, 0))
    except (TypeError, AttributeError, ValueError, ArithmeticError) as e:
        raise Refused(f"no JSON schema: {e}") from e  # a word has a value of the wrong type


def _value(schema: Any, root: Any, depth: int) -> Any:
    if schema is True:
        return {}
    _check(schema, depth)
    if "$ref" in schema:
        return _value(_resolve(schema["$ref"], root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf"):
        if schema.get(word):
            return _first(schema[word], {k: v for k, v in schema.items() if k != word}, root, depth)
    if "allOf" in schema:
        return _value(_merged(schema, root), root, depth + 1)
    return _MAKERS[_kind(schema)](schema, root, depth)


def _check(schema: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise Refused("the JSON schema has no finite instance")
    if not isinstance(schema, dict):
        raise Refused(f"no JSON schema: {json.dumps(schema)[:100]}")
    hard = [word for word in ("pattern", "not") if word in schema]
    if hard:
        raise Refused(f"the simulator cannot satisfy `{hard[0]}` in a JSON schema")


def _first(options: list[Any], rest: dict[str, Any], root: Any, depth: int) -> Any:
    """An instance of the first option that has one, together with what stands beside it.

    References come last: they may lead back to here.
    """
    *others, last = sorted(options, key=lambda option: "$ref" in option)
    for option in others:
        try:
            return _value(_both(rest, option, root), root, depth + 1)
        except Refused:
            continue
    return _value(_both(rest, last, root), root, depth + 1)


def _merged(schema: dict[str, Any], root: Any) -> Any:
    whole: Any = {k: v for k, v in schema.items() if k != "allOf"}
    for part in schema["allOf"]:
        whole = _both(whole, part, root)
    return whole


def _both(one: Any, other: Any, root: Any) -> Any:
    """Two schemas as one. Where both say the same word, the second has it, but for objects'."""
    while isinstance(other, dict) and "$ref" in other:
        other = _resolve(other["$ref"], root)
    if not isinstance(other, dict):
        return one if other is True else other
    properties = {**one.get("properties", {}), **other.get("properties", {})}
    required = [*one.get("required", ()), *other.get("required", ())]
    objects = {"properties": properties, "required": required} if properties or required else {}
    return {**one, **other, **objects}


def _resolve(reference: Any, root: Any) -> Any:
    found = root
    try:
        for step in str(reference).removeprefix("#").split("/")[1:]:
            found = found[step.replace("~1", "/").replace("~0", "~")]
    except (KeyError, TypeError) as e:
        raise Refused(f"the JSON schema has no {reference}") from e
    return found


def _kind(schema: dict[str, Any]) -> str:
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    for kind in sorted(kinds, key=lambda kind: kind == "null"):
        if kind in _MAKERS:
            return str(kind)
    if kinds:
        raise Refused(f"no type of JSON schema: {json.dumps(kinds)[:100]}")
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "object"


def _object(schema: dict[str, Any], root: Any, depth: int) -> Any:
    properties = schema.get("properties", {})
    names = dict.fromkeys(schema.get("required", ()))
    return {name: _value(properties.get(name, True), root, depth + 1) for name in names}


def _array(schema: dict[str, Any], root: Any, depth: int) -> Any:
    first, more = schema.get("prefixItems", []), schema.get("items", True)
    count = _bounded(schema.get("minItems", 0))
    schemas = [*first, *[more] * max(0, count - len(first))][:count]
    return [_value(each, root, depth + 1) for each in schemas]


def _string(schema: dict[str, Any], _root: Any, _depth: int) -> Any:
    length = _bounded(schema.get("minLength", 0))
    return FORMATS.get(schema.get("format", ""), "").ljust(length, "a")


def _bounded(length: int) -> int:
    if length > LONGEST:
        raise Refused(f"the JSON schema asks for {length} of something; at most {LONGEST}")
    return length


def _number(schema: dict[str, Any], _root: Any, _depth: int) -> Any:
    """Zero where it is allowed, else the number inside the bounds that is next to one of them."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    step = schema.get("multipleOf", 1 if schema.get("type") == "integer" else None)
    tries: list[Any] = [0]
    for bound, toward in ((low, 1), (high, -1)):
        if math.isfinite(bound):
            first = bound if step is None else toward * math.ceil(toward * bound / step) * step
            tries += [first, first + toward * (step or 1)]
    if step is None and math.isfinite(low) and math.isfinite(high):
        tries.append((low + high) / 2)
    out = (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))
    for number in tries:
        if low <= number <= high and number not in out:
            return number
    raise Refused(f"the simulator finds no number between {low} and {high}")


_MAKERS = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _number,
    "boolean": lambda *_: False,
    "null": lambda *_: None,
}
