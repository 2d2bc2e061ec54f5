"""A reversible tokenizer without data files: a token is a piece of at most four UTF-8 bytes.

A piece begins at a space or in the middle of a long word, so that two prompts with the same
beginning share their first tokens, as with a trained vocabulary. Ids fit into 32 bits: four
bytes are the id; shorter pieces and the special tokens have a first byte that UTF-8 never uses.
English takes about 3 bytes a token.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

_PIECE = re.compile(rb" [^ \n]{1,3}|[^ \n]{1,4}|[ \n]")
_PAD = {1: b"\xf9\0\0", 2: b"\xfa\0", 3: b"\xfb", 4: b""}
_LENGTH = {0xF9: 1, 0xFA: 2, 0xFB: 3}
_SPECIAL = 0xFC
_REMEMBERED = 1 << 16  # words
_LONGEST_WORD = 64  # characters, of one to remember

VOCABULARY = 1 << 32
MOST_CHARACTERS = 4  # in a token
_ROLES = ("system", "user", "assistant", "tool", "developer")


def special(number: int) -> int:
    return (_SPECIAL << 24) + number


END = special(0)  # of a turn
ROLE = {role: special(1 + i) for i, role in enumerate(_ROLES)}
_NAMES = {END: b"<|end|>"} | {token: f"<|{role}|>".encode() for role, token in ROLE.items()}


def is_special(token: int) -> bool:
    return token >> 24 == _SPECIAL


def _pieces(text: str) -> list[int]:
    pieces = _PIECE.findall(text.encode("utf-8", "replace"))
    return [int.from_bytes(_PAD[len(piece)] + piece, "big") for piece in pieces]


class _Words(dict[str, list[int]]):
    """Token ids of a space and a word, remembered: texts repeat their words."""

    def __missing__(self, word: str) -> list[int]:
        tokens = _pieces(f" {word}")
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[word] = tokens
        return tokens


_words = _Words()


def encode(text: str) -> list[int]:
    """Token ids of a text. `decode(encode(text)) == text` for every valid text."""
    first, *words = text.split(" ")  # no piece goes across a space
    return [*_pieces(first), *chain.from_iterable(map(_words.__getitem__, words))]


def decode(tokens: Sequence[int]) -> str:
    """The text of token ids; what is no UTF-8 becomes U+FFFD."""
    if len(tokens) == 1:  # in a stream
        return _alone(tokens[0])
    return b"".join(map(_piece, tokens)).decode("utf-8", "replace")


@lru_cache(_REMEMBERED)
def _alone(token: int) -> str:
    return _piece(token).decode("utf-8", "replace")


def _piece(token: int) -> bytes:
    if token in _NAMES:
        return _NAMES[token]
    raw = token.to_bytes(4, "big")
    return raw[4 - _LENGTH.get(raw[0], 4) :]


def render(messages: Sequence[tuple[str, str]], *, generate: bool = True) -> list[int]:
    """Token ids of a chat, of (role, content) pairs, up to where the assistant begins.

    A conversation that goes on keeps all its former tokens, so it keeps its prefix hits.
    """
    tokens = list[int]()
    for role, content in messages:
        tokens += [ROLE.get(role, ROLE["user"]), *encode(content), END]
    return [*tokens, ROLE["assistant"]] if generate else tokens
