"""What a request says of its own routing: in headers, or in a field of its body.

    X-Priority: 5                       in the line: the higher first, 0 where nothing is said
    X-Session-Id: any text              router=session: the same worker for the same text
    X-Worker-Rank: 3                    this worker and no other; `1,3` where roles are two
    X-Router-Policy: round_robin        any of the policies of `router=`
    X-Router-Overlap-Weight: 0.5        and -Decode-Weight, -Temperature: as in router.*

    {"hpc_dynamo": {"priority": 5, "session": "…", "workers": [3], "policy": "…", …}, …}

The field is taken out before an engine sees the body. Where both say something the header counts.
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
NOTHING = RoutingHints()


def parse_routing_hints(headers: Mapping[str, str], body: Body) -> RoutingHints:
    """Raises Refused for what cannot be meant."""
    wish = NOTHING if is_null(body, HINTS_FIELD) else _of_body(body[HINTS_FIELD])
    if HEADERS.keys().isdisjoint(headers):
        return wish
    given = {field: headers[name] for name, field in HEADERS.items() if name in headers}
    return _of_headers(wish, given)


def _of_body(said: msgspec.Raw) -> RoutingHints:
    """Return the hints in a body. Fields that are null are unset."""
    try:
        given = {k: v for k, v in read_fields(bytes(said)).items() if bytes(v) != b"null"}
        return msgspec.json.decode(msgspec.json.encode(given), type=RoutingHints)
    except (msgspec.DecodeError, UnicodeDecodeError, JsonError) as e:
        raise _refusal(HINTS_FIELD, e) from e


def _of_headers(wish: RoutingHints, given: Mapping[str, str]) -> RoutingHints:
    fields: dict[str, object] = msgspec.to_builtins(wish) | dict(given)
    if "workers" in given:
        fields["workers"] = given["workers"].split(",")
    try:
        return msgspec.convert(fields, RoutingHints, strict=False)  # text to numbers
    except msgspec.ValidationError as e:
        raise _refusal("a header of routing", e) from e


def _refusal(where: str, error: Exception) -> ApiError:
    known = ", ".join(RoutingHints.__struct_fields__)
    return ApiError(400, f"{where}: {error}; known fields: {known}", param=HINTS_FIELD)
