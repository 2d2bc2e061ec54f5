"""JSON schemas and the smallest JSON that they allow."""

import json
from typing import Any

import pytest

from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.json_schema_sampler import instance

TREE = {"type": "object", "properties": {"child": {"$ref": "#"}}}
POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
HAS_Y = {"properties": {"y": {"const": "é"}}, "required": ["y"]}

CASES: list[tuple[Any, Any]] = [
    (None, {}),
    (True, {}),
    ({}, {}),
    ({"type": "string"}, ""),
    ({"type": "string", "minLength": 3}, "aaa"),
    ({"type": "string", "format": "date"}, "2000-01-01"),
    ({"type": "integer"}, 0),
    ({"type": "integer", "minimum": 1}, 1),
    ({"type": "integer", "exclusiveMinimum": 0}, 1),
    ({"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5}, 5),
    ({"type": "integer", "exclusiveMinimum": 5, "multipleOf": 5}, 10),
    ({"type": "integer", "maximum": -3, "multipleOf": 2}, -4),
    ({"type": "number", "exclusiveMaximum": 0}, -1),
    ({"type": "number", "minimum": 0.2, "maximum": 0.4, "multipleOf": 0.1}, 0.2),
    ({"type": "number", "minimum": 0.2, "maximum": 0.4}, 0.2),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
    ({"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0}, -0.5),
    ({"type": "boolean"}, False),
    ({"type": "null"}, None),
    ({"type": ["null", "integer"]}, 0),
    ({"const": [1]}, [1]),
    ({"enum": ["b", "a"]}, "b"),
    ({"type": "array", "items": {"type": "integer"}}, []),
    ({"items": {"type": "integer"}, "minItems": 2}, [0, 0]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 3}, [1, 2, 2]),
    (POINT, {"x": 0}),
    (TREE, {}),
    ({"anyOf": [{"not": {}}, {"type": "null"}]}, None),
    ({"oneOf": [POINT, HAS_Y], "type": "object"}, {"x": 0}),
    ({"allOf": [POINT, HAS_Y]}, {"x": 0, "y": "é"}),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 7}}}, 7),
    ({"allOf": [{"$ref": "#/$defs/p"}, HAS_Y], "$defs": {"p": POINT}}, {"x": 0, "y": "é"}),
]


@pytest.mark.parametrize(("schema", "smallest"), CASES)
def test_the_smallest(schema: Any, smallest: Any) -> None:
    text = instance(schema)
    assert text.isascii()
    assert json.loads(text) == smallest


REFUSED: list[Any] = [
    False,
    {"type": "string", "pattern": "^a+$"},
    {"type": "text"},
    {"$ref": "#/$defs/none"},
    {"required": ["child"], "properties": {"child": {"$ref": "#"}}},
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"properties": 5, "required": ["x"]},
    {"type": "array", "minItems": 10**9},
    {"type": "string", "minLength": "long"},
    {"type": "integer", "minimum": 1, "multipleOf": 0},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
]


@pytest.mark.parametrize("schema", REFUSED)
def test_what_is_beyond_it_is_refused(schema: Any) -> None:
    with pytest.raises(Refused):
        instance(schema)
