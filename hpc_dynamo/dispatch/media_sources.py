"""Sources from which engines may read the images, audio and video of a request.

Clients name them. SGLang 0.5 and TensorRT-LLM 1.3 open local paths, with or without `file://`, and
fetch any URL. vLLM 0.32 fetches any URL, also of hosts that only the node can reach. Therefore a
request may hold media itself, and `engine.allowed_media` lists other sources.

vLLM keeps media by their `uuid`, in place of a hash of the content. So a client could read a medium
of another one, or replace it. A `uuid` is therefore refused.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from hpc_dynamo.dispatch.refusal import refusal
from hpc_dynamo.engines import Body, field_value
from hpc_dynamo.engines.pd_protocol import UNREADABLE
from hpc_dynamo.errors import RequestFailed

KINDS = frozenset(("audio", "document", "file", "image", "video"))
# Names of fields whose texts are media. Other names end in one of ENDINGS.
NAMES = KINDS | {"audios", "images", "videos", "input_reference", "ref_audio", "ref_image"}
ENDINGS = ("_url", "_urls", "_path", "_paths", "image_data", "video_data", "audio_data")
# Names inside an object that describes one medium.
INSIDE = frozenset(("path", "url", "file_data"))
# Fields with any names inside, in which no engine looks for media.
IGNORED = frozenset(
    {
        "arguments", "chat_template_kwargs", "functions", "input_schema", "json_schema", "metadata",
        "parameters", "response_format", "schema", "structured_outputs", "tool_choice", "tools",
    }
)  # fmt: skip
# Raw JSON without any of these has no media.
_HINTS = (b"url", b"path", b"image", b"video", b"audio", b"ref_", b"_data", b"\\u")
_URL = re.compile(r"https?://([A-Za-z0-9.-]+)(?::\d{1,5})?(?:[/?#][^\s\\\x00-\x1f]*)?")
_BASE64 = bytes(range(48, 58)) + bytes(range(65, 91)) + bytes(range(97, 123)) + b"+/=\r\n"
_LONGEST_URL = 1 << 16
_LONGEST_PATH = 4096  # bytes; Linux opens no longer one
_SHOWN_CHARS = 100


class MediaSources:
    """Decides which media of requests may reach an engine.

    `allowed` has names of hosts, `*.DOMAIN` for all hosts of a domain, `*` for all hosts, and
    absolute paths of folders.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._folders = tuple(f"{each.rstrip('/')}/" for each in allowed if each.startswith("/"))
        hosts = [each.lower() for each in allowed if not each.startswith("/")]
        self._hosts = frozenset(hosts)
        self._domains = tuple(host[1:] for host in hosts if host.startswith("*."))

    def check(self, body: Body) -> None:
        """Raise RequestFailed for a medium from elsewhere, anywhere in a body."""
        for name, value in body.items():
            if name in IGNORED:
                continue
            named = _names_media(name) or name == "url"
            if not named and isinstance(value, msgspec.Raw) and not _may_hold_media(bytes(value)):
                continue
            if (value := field_value(value)) is UNREADABLE:
                raise refusal(f"{name} is not JSON", name)
            self._check(name, _media(value, named))

    def check_form(self, fields: Iterable[tuple[str, str]]) -> None:
        """Raise RequestFailed for a field of a multipart form that names a medium elsewhere. The
        value of a file in the form is empty."""
        for name, value in fields:
            bare = name.partition("[")[0]
            if value and (_names_media(bare) or bare == "url"):
                self._check(name, (value,))

    def _check(self, name: str, media: Iterable[str]) -> None:
        for source in media:
            if not self._allows(source):
                raise _refused(name, source)

    def _allows(self, source: str) -> bool:
        # An image may end in `png`, which SGLang then opens as a file.
        if source.startswith("data:"):
            return ".." not in source
        if url := _url(source):
            return self._allows_host(url[1].lower())
        path = source.removeprefix("file://")
        if path.startswith(self._folders or "\0"):
            return "%" not in path and ".." not in path.split("/")
        return len(source) > _LONGEST_PATH and _is_base64(source)

    def _allows_host(self, host: str) -> bool:
        return "*" in self._hosts or host in self._hosts or host.endswith(self._domains or "\0")


def _refused(name: str, source: str) -> RequestFailed:
    shown = source if len(source) <= _SHOWN_CHARS else f"{source[:_SHOWN_CHARS]}…"
    url = _url(source)
    what = f"the host {url[1]}" if url else "its folder"
    return refusal(
        f"{name}: engines may not read {shown!r}; send a base64 data: URL, or add {what} to "
        "engine.allowed_media",
        name,
    )


def _media(value: Any, named: bool) -> Iterator[str]:
    """Yield the texts in a field that name or hold media; `named` if the field itself does."""
    waiting = [(value, named)]
    while waiting:
        value, named = waiting.pop()
        if isinstance(value, str):
            if named:
                yield value
        elif isinstance(value, list):
            waiting += [(each, named) for each in value]
        elif isinstance(value, dict):
            waiting += _inside(value, named)


def _inside(value: dict[str, Any], named: bool) -> Iterator[tuple[Any, bool]]:
    kind = value.get("type")
    is_medium = named or (isinstance(kind, str) and _is_kind(kind))
    if value.get("uuid") is not None and (is_medium or any(map(_mentions_media, value))):
        raise refusal("uuid names a medium that engines keep for all clients; omit it", "uuid")
    for name, inner in value.items():
        # The input of a tool may have any names; a source is an object in Anthropic's format.
        if name in IGNORED or (name == "input" and kind == "tool_use"):
            continue
        source = name == "source" and isinstance(inner, dict)
        inside = is_medium and (name in INSIDE or isinstance(inner, list | dict))
        yield inner, _names_media(name) or source or inside


def _url(source: str) -> re.Match[str] | None:
    """Return the parts of an http or https URL; None for a long text, whose search takes long."""
    return _URL.fullmatch(source) if len(source) <= _LONGEST_URL else None


def _is_kind(kind: str) -> bool:
    """Return True for the type of a medium, such as `image`, `input_file` or `video_url`."""
    return kind.removeprefix("input_").removesuffix("_url") in KINDS


def _mentions_media(name: str) -> bool:
    return not {"audio", "image", "video"}.isdisjoint(name.split("_"))


def _names_media(name: str) -> bool:
    return name in NAMES or name.endswith(ENDINGS)


def _may_hold_media(content: bytes) -> bool:
    """Return False if a field, which is not named as media, cannot hold any."""
    return not content.startswith(b'"') and any(hint in content for hint in _HINTS)


def _is_base64(text: str) -> bool:
    return text.isascii() and not text.encode().translate(None, _BASE64)
