"""Routing hints of a request, in headers or in a field of its body.

    X-Priority: 5                       position in the queue: higher first, default 0
    X-Session-Id: any text              router=session: same worker for the same text
    X-Worker-Rank: 3                    only this worker; `1,3` for a prefill and a decode worker
    X-Router-Policy: round_robin        any policy of `router=`
    X-Router-Overlap-Weight: 0.5        and -Decode-Weight, -Temperature: as in router.*

    {"hpc_dynamo": {"priority": 5, "session": "…", "workers": [3], "policy": "…", …}, …}

The field is removed before the body is sent to an engine. A header overrides the field.
"""

from collections.abc import Mapping

import msgspec

from hpc_dynamo.engines import Body
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.json_reader import JsonError, is_null, read_fields
from hpc_dynamo.router import RoutingHints

HINTS_FIELD = "hpc_dynamo"
HEADERS = {
    "x-priority": "priority",
    "x-session-id": "session",
    "x-worker-rank": "workers",
    "x-router-policy": "policy",
    "x-router-overlap-weight": "overlap_weight",
    "x-router-decode-weight": "decode_weight",
    "x-router-temperature": "temperature",
}
MAX_HINTS_BYTES = 1 << 16
NO_HINTS = RoutingHints()


def parse_routing_hints(headers: Mapping[str, str], body: Body) -> RoutingHints:
    """Return the hints of a request. Raises ApiError for invalid ones."""
    hints = NO_HINTS if is_null(body, HINTS_FIELD) else _from_body(body[HINTS_FIELD])
    if HEADERS.keys().isdisjoint(headers):
        return hints
    values = {field: headers[name] for name, field in HEADERS.items() if name in headers}
    return _with_headers(hints, values)


def _from_body(field: msgspec.Raw) -> RoutingHints:
    """Return the hints in a body. Fields that are null are unset."""
    if len(memoryview(field)) > MAX_HINTS_BYTES:
        what = f"{HINTS_FIELD} has more than {MAX_HINTS_BYTES} bytes"
        raise ApiError(400, what, param=HINTS_FIELD)
    try:
        values = {k: v for k, v in read_fields(bytes(field)).items() if bytes(v) != b"null"}
        return msgspec.json.decode(msgspec.json.encode(values), type=RoutingHints)
    except (msgspec.DecodeError, UnicodeDecodeError, JsonError) as e:
        raise _error(HINTS_FIELD, e) from e


def _with_headers(hints: RoutingHints, values: Mapping[str, str]) -> RoutingHints:
    fields: dict[str, object] = msgspec.to_builtins(hints) | dict(values)
    if "workers" in values:
        fields["workers"] = values["workers"].split(",")
    try:
        return msgspec.convert(fields, RoutingHints, strict=False)  # converts text to numbers
    except msgspec.ValidationError as e:
        raise _error("a routing header", e) from e


def _error(source: str, error: Exception) -> ApiError:
    known = ", ".join(RoutingHints.__struct_fields__)
    return ApiError(400, f"{source}: {error}; known fields: {known}", param=HINTS_FIELD)
