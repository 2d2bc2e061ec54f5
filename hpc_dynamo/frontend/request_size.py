"""Limit on the items of a request. Without it, one body of a million empty messages or prompts
stops the event loop for seconds: the decoder holds Python's lock, so a thread would not help."""

from hpc_dynamo.engines import MAX_IDS, Body
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.json_reader import count_outside_strings, count_strings, only_ids

PROMPT_FIELDS = ("prompt", "input", "documents", "text_1", "text_2")
# May be lists of token ids, and then of any length.
ID_FIELDS = frozenset(("input", "input_ids", "prompt", "prompt_token_ids", "token_ids", "tokens"))
SETTING = "serve.max_items_per_request"
KEYS_PER_ITEM = 4  # names of fields for each object or array


def check_items(content: bytes, limit: int) -> None:
    """Raise ApiError if a body has more than `limit` objects and arrays, or KEYS_PER_ITEM times as
    many names of fields. It is not decoded yet."""
    if (found := count_outside_strings(content, b"[{", limit)) > limit:
        what = f"the body has {found} objects and arrays; at most {limit} are accepted ({SETTING})"
        raise ApiError(400, what)
    keys = limit * KEYS_PER_ITEM
    if (found := count_outside_strings(content, b":", keys)) > keys:
        what = f"the body has {found} names of fields; at most {keys} are accepted"
        raise ApiError(400, f"{what} ({KEYS_PER_ITEM} times {SETTING})")


def check_texts(body: Body, limit: int) -> None:
    """Raise ApiError if a field has more than `limit` texts. Lists of token ids may be longer."""
    for name in PROMPT_FIELDS:
        value = bytes(body.get(name, b"")).lstrip()
        if value[:1] == b"[" and value.count(b",") >= limit and value[1:].lstrip()[:1] == b'"':
            items = count_strings(value)
            if items > limit:
                what = f"{name} has {items} texts; at most {limit} are accepted ({SETTING})"
                raise ApiError(400, what, param=name)


def check_values(content: bytes, body: Body) -> None:
    """Raise ApiError for more than MAX_IDS values in arrays and objects.

    The token ids of prompts do not count: they are not decoded if they are more.
    """
    found = count_outside_strings(content, b",", MAX_IDS)
    if found > MAX_IDS:
        found -= sum(_count_ids(bytes(body[name])) for name in ID_FIELDS & body.keys())
    if found > MAX_IDS:
        what = f"the body has {found} values; at most {MAX_IDS} are accepted"
        raise ApiError(400, f"{what}, and more only as the token ids of prompts")


def _count_ids(value: bytes) -> int:
    """Return the number of token ids, 0 for other values."""
    return value.count(b",") if only_ids(value) else 0
