"""Routing hints that the router could not use are refused with the field's name."""

import json

import msgspec
import pytest

from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.routing_hints import parse_routing_hints

INVALID = {
    "x-router-temperature": ("inf", "-1", "nan", "1e10", "x"),
    "x-router-overlap-weight": ("inf", "-0.5", "nan"),
    "x-router-decode-weight": ("Infinity", "1e308"),
    "x-priority": ("99999999999999999999", str(2**31), "1.5", "-" + "9" * 40),
    "x-worker-rank": ("-1", str(2**63), "9" * 5000, "1,,2", ",".join("1" * 2000)),
    "x-router-policy": ("fastest", ""),
    "x-session-id": ("s" * 5000,),
}
FIELDS = {
    "temperature": [1e999, -1, "x"],
    "overlap_weight": [1e999, -1e999, 1e308],
    "priority": [2**63, 2**31, 1.5, 10**400],
    "workers": [[-1], [2**63], list(range(2000)), "1", [[0]]],
    "session": ["s" * 5000, "s" * 70_000, 5],
    "policy": ["fastest", 3],
}


@pytest.mark.parametrize(("header", "values"), INVALID.items())
def test_invalid_header_is_refused(header: str, values: tuple[str, ...]) -> None:
    for value in values:
        with pytest.raises(ApiError) as error:
            parse_routing_hints({header: value}, {})
        assert error.value.status == 400, value


@pytest.mark.parametrize(("field", "values"), FIELDS.items())
def test_invalid_field_of_the_body_is_refused(field: str, values: list[object]) -> None:
    for value in values:
        raw = msgspec.Raw(json.dumps({field: value}).encode())
        with pytest.raises(ApiError) as error:
            parse_routing_hints({}, {"hpc_dynamo": raw})
        assert error.value.status == 400, value


def test_extreme_valid_hints_are_accepted() -> None:
    headers = {"x-priority": str(-(2**31) + 1), "x-router-temperature": "1e9"}
    hints = parse_routing_hints(headers | {"x-worker-rank": "0,7"}, {})
    assert (hints.priority, hints.temperature, hints.workers) == (-(2**31) + 1, 1e9, (0, 7))
