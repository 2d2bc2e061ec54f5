"""Execution of requests with images, audio or video on disaggregated workers.

Both workers get the media. Engines differ in whether the decode worker can use the KV cache of such
a prompt (`disaggregated_media` in engines/contract).
"""

import re
from typing import Any

import msgspec

from hpc_dynamo.dispatch.execution import AGGREGATED, Execution
from hpc_dynamo.dispatch.media_sources import IGNORED
from hpc_dynamo.dispatch.refusal import refusal
from hpc_dynamo.engines import Body, ConcurrentProtocol, PdProtocol, field_value

KINDS = frozenset({"audio", "image", "video"})
# Types and fields of parts in the chat, messages and responses APIs.
_PART = re.compile(r"(?:input_)?(audio|image|video)(?:_(?:embeds|pil|url))?")
_FIELDS = ("input", "messages", "system")


def media_kinds(body: Body) -> frozenset[str]:
    """Return the kinds of media in the prompt of a body."""
    found = set[str]()
    waiting = [_value(body[name]) for name in _FIELDS if name in body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            kind = value.get("type")
            names = (*value, kind) if isinstance(kind, str) else value
            found |= {match[1] for name in names if (match := _PART.fullmatch(name))}
            waiting += [v for name, v in value.items() if not _is_data(name, kind)]
    return frozenset(found)


def _is_data(name: str, kind: object) -> bool:
    return name in IGNORED or (name == "input" and kind == "tool_use")


def _value(value: Any) -> Any:
    """Return a decoded field; None if it cannot hold media, so that long texts are not decoded."""
    if isinstance(value, msgspec.Raw):
        content = bytes(value)
        if not any(hint in content for hint in (b"audio", b"image", b"video", b"\\u")):
            return None
    return field_value(value)


class MediaExecution:
    """Decides for engines of which two workers share requests only with some media.

    `shared` has those kinds of media.
    """

    def __init__(self, protocol: PdProtocol, shared: frozenset[str]) -> None:
        self._alone = not isinstance(protocol, ConcurrentProtocol)
        self._shared = shared

    def of(self, body: Body, execution: Execution) -> Execution:
        """Return how the request is executed, given its execution without media.

        Raises RequestFailed if no worker can serve it.
        """
        if not execution.disaggregated or self._shared >= KINDS:
            return execution
        other = media_kinds(body) - self._shared
        if other and not self._alone:
            named = " and ".join(sorted(other))
            raise refusal(
                f"this engine cannot divide a prompt with {named} between a prefill and a decode "
                "worker, and neither serves it without the other; run topology=aggregated",
                "messages",
            )
        return AGGREGATED if other else execution
