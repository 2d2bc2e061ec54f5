"""Limit on the items of a request. Without it, one body of a million empty messages or prompts
stops the event loop for seconds: the decoder holds Python's lock, so a thread would not help."""

import msgspec

from hpc_dynamo.engines import Body
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.json_reader import count_containers

PROMPT_FIELDS = ("prompt", "input", "documents", "text_1", "text_2")
SETTING = "serve.max_items_per_request"

_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def check_items(content: bytes, limit: int) -> None:
    """Raise ApiError if a body has more than `limit` objects and arrays. It is not decoded yet."""
    if (found := count_containers(content, limit)) > limit:
        what = f"the body has {found} objects and arrays; at most {limit} are accepted ({SETTING})"
        raise ApiError(400, what)


def check_texts(body: Body, limit: int) -> None:
    """Raise ApiError if a field has more than `limit` texts. Lists of token ids may be longer."""
    for name in PROMPT_FIELDS:
        value = bytes(body.get(name, b"")).lstrip()
        if value[:1] == b"[" and value.count(b",") >= limit and value[1:].lstrip()[:1] == b'"':
            items = len(_ITEMS.decode(value))
            if items > limit:
                what = f"{name} has {items} texts; at most {limit} are accepted ({SETTING})"
                raise ApiError(400, what, param=name)
