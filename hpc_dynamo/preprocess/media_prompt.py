"""Token ids of chats with images, audio or video, as far as routing needs them.

An engine replaces each medium by tokens whose number only it knows, and its prefix cache also
compares the contents. Here a message with media starts with MEDIUM_TOKENS ids for each of them.
These ids depend on the contents, on everything in the message up to its last medium, and on the
options for media. So two prompts share a prefix beyond that point only if an engine also finds
equal media there. The ids before the first such message are the engine's own.

No engine publishes these ids in its KV events. See `Tokens.text_end`.
"""

import hashlib
import re
import secrets
from array import array
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import msgspec

from hpc_dynamo.large_bodies import off_loop
from hpc_dynamo.preprocess.tokens import Tokens, UnknownTokens

# Tokens of an image of 448x448 pixels in Qwen2-VL; other models take 64 to a few thousand.
MEDIUM_TOKENS = 256
KINDS = frozenset(
    f"{kind}_{form}" for kind in ("audio", "image", "video") for form in ("embeds", "url")
) | {"input_audio", "input_image", "input_video"}
OPTIONS = ("media_io_kwargs", "mm_processor_kwargs")

# Stands for media in a text. No client knows it, and templates print it unchanged.
_SECRET = secrets.token_hex(16)
_MARK = re.compile(f"{_SECRET}-([0-9]+);")

_ENCODER = msgspec.json.Encoder(order="deterministic")
Encode = Callable[[str], Awaitable[Tokens]]


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """The body of a chat without its media.

    `media` has the ids that stand for the media of each message that had any.
    """

    body: Mapping[str, Any]
    media: tuple[bytes, ...]
    count: int  # media

    @classmethod
    async def of(cls, body: Mapping[str, Any]) -> Self | None:
        """Return the body without media; None if it has none. Large media are hashed in a thread:
        1 MB takes 4 ms."""
        messages = body.get("messages")
        if not isinstance(messages, list):
            return None
        parts = {i: found for i, message in enumerate(messages) if (found := _media(message))}
        if not parts:
            return None
        size = sum(_characters(messages[i]) for i in parts)
        return await off_loop(size, partial(cls._of, body, parts))

    @classmethod
    def _of(cls, body: Mapping[str, Any], parts: Mapping[int, list[int]]) -> Self:
        """`parts` has the positions of media in the content of a message, by its index."""
        options, media = [body.get(name) for name in OPTIONS], list[bytes]()
        messages = list(body["messages"])
        for i, at in parts.items():
            content = messages[i]["content"]
            messages[i] = {**messages[i], "content": _without_media(content, at, len(media))}
            media.append(_ids([options, content[: at[-1] + 1]], len(at)))
        return cls({**body, "messages": messages}, tuple(media), sum(map(len, parts.values())))

    async def tokens(self, text: str, encode: Encode) -> Tokens | UnknownTokens:
        """Return the ids of the rendered `body`."""
        pieces = _MARK.split(text)  # text, number, text, number, ..., text
        if pieces[1::2] != [str(i) for i in range(len(self.media))]:
            return UnknownTokens("the chat template drops, repeats or moves messages with media")
        texts = [(await encode(piece)).data for piece in pieces[::2]]
        data = [
            texts[0],
            *(ids for pair in zip(self.media, texts[1:], strict=True) for ids in pair),
        ]
        return Tokens(b"".join(data), len(texts[0]) >> 2, MEDIUM_TOKENS * self.count)


def _media(message: object) -> list[int]:
    """Return the positions of media among the parts of a message."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return []
    return [i for i, part in enumerate(content) if _kind(part) in KINDS]


def _characters(value: object) -> int:
    """Return the length of all texts in a value."""
    match value:
        case str():
            return len(value)
        case list():
            return sum(map(_characters, value))
        case dict():
            return sum(map(_characters, value.values()))
    return 0


def _kind(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


def _without_media(content: list[Any], at: list[int], number: int) -> list[Any]:
    """Return the parts with one mark for all media, at the start.

    Many templates, and engines for templates that expect only text, put media before the text of
    their message. The ids before the mark are thus right in any case.
    """
    mark = {"type": "text", "text": f"{_SECRET}-{number};"}
    return [mark, *(part for i, part in enumerate(content) if i not in at)]


def _ids(identity: object, count: int) -> bytes:
    """Return the ids that stand for `count` media with this identity."""
    digest = array("I", hashlib.blake2b(_ENCODER.encode(identity), digest_size=16).digest())
    return (digest * (MEDIUM_TOKENS * count // len(digest))).tobytes()
