"""A reversible tokenizer without data files. A token is a piece of at most four UTF-8 bytes.

A piece begins at a space or inside a long word. Two prompts with the same beginning therefore
share their first tokens, as with a trained vocabulary. Ids have 32 bits. Four bytes are their own
id; shorter pieces and special tokens have a first byte that UTF-8 never uses. English text has
about 3 bytes per token.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

_PIECE = re.compile(rb" [^ \n]{1,3}|[^ \n]{1,4}|[ \n]")
_PAD = {1: b"\xf9\0\0", 2: b"\xfa\0", 3: b"\xfb", 4: b""}
_LENGTH = {0xF9: 1, 0xFA: 2, 0xFB: 3}
_SPECIAL = 0xFC
_CACHED_WORDS = 1 << 16
_CACHED_WORD_CHARACTERS = 64

VOCABULARY = 1 << 32
MAX_TOKEN_CHARACTERS = 4
_ROLES = ("system", "user", "assistant", "tool", "developer")


def special(number: int) -> int:
    return (_SPECIAL << 24) + number


END = special(0)  # end of a message
ROLE = {role: special(1 + i) for i, role in enumerate(_ROLES)}
_NAMES = {END: b"<|end|>"} | {token: f"<|{role}|>".encode() for role, token in ROLE.items()}


def is_special(token: int) -> bool:
    return token >> 24 == _SPECIAL


def _pieces(text: str) -> list[int]:
    pieces = _PIECE.findall(text.encode("utf-8", "replace"))
    return [int.from_bytes(_PAD[len(piece)] + piece, "big") for piece in pieces]


class _WordCache(dict[str, list[int]]):
    """Token ids of a space and a word. Texts repeat their words."""

    def __missing__(self, word: str) -> list[int]:
        tokens = _pieces(f" {word}")
        if len(word) <= _CACHED_WORD_CHARACTERS:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = tokens
        return tokens


_words = _WordCache()


def encode(text: str) -> list[int]:
    """Return the token ids of a text. `decode(encode(text)) == text` for every valid text."""
    first, *words = text.split(" ")  # no piece crosses a space
    return [*_pieces(first), *chain.from_iterable(map(_words.__getitem__, words))]


def decode(tokens: Sequence[int]) -> str:
    """Return the text of token ids. Invalid UTF-8 becomes U+FFFD."""
    if len(tokens) == 1:  # streams decode single tokens
        return _decode_one(tokens[0])
    return b"".join(map(_piece, tokens)).decode("utf-8", "replace")


@lru_cache(_CACHED_WORDS)
def _decode_one(token: int) -> str:
    return _piece(token).decode("utf-8", "replace")


def _piece(token: int) -> bytes:
    if token in _NAMES:
        return _NAMES[token]
    raw = token.to_bytes(4, "big")
    return raw[4 - _LENGTH.get(raw[0], 4) :]


def render(messages: Sequence[tuple[str, str]], *, generate: bool = True) -> list[int]:
    """Return the token ids of a chat of (role, content) pairs.

    With `generate`, the ids end where the assistant's message begins. A continued conversation
    keeps all its former tokens, and so its prefix hits.
    """
    tokens = list[int]()
    for role, content in messages:
        tokens += [ROLE.get(role, ROLE["user"]), *encode(content), END]
    return [*tokens, ROLE["assistant"]] if generate else tokens
