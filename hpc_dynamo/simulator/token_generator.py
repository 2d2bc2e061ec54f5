"""Deterministic output of the simulated model.

Each word is one token. It depends on all tokens before it, and on nothing else. Therefore a prompt
that ends with the beginning of an output continues that output, as with a real model.
A request for structured output gets fixed tokens instead.
"""

from collections.abc import Sequence
from typing import Protocol

from hpc_dynamo.simulator.tokenizer import encode, is_special

WORDS = [a + b + c for a in "blmnprstv" for b in "aeiou" for c in "lmnr"]
_WITH_SPACE = [encode(f" {word}")[0] for word in WORDS]
_WITHOUT_SPACE = [encode(word)[0] for word in WORDS]
_MULTIPLIER, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class TokenGenerator(Protocol):
    """Produces an output token by token: `token(i)` for i = 0, 1, …"""

    def token(self, i: int) -> int: ...

    def ends(self, i: int) -> bool:
        """Return True if the output may end after token i, the last one."""


class WordGenerator:
    """Random words as the output of one prompt.

    `tokens` and `block_hashes` are the sequence's own growing lists: all tokens before the next
    one, and the chained hash of each full block of them. `root` is the hash before the first block,
    `salt` distinguishes outputs of one prompt, and `mean_tokens` is the mean output length. If the
    prompt's last token is special, the first word has no leading space.
    """

    def __init__(
        self, tokens: Sequence[int], block_hashes: Sequence[bytes], root: bytes, *,
        block_size: int, mean_tokens: int, salt: int = 0,
    ) -> None:  # fmt: skip
        self._tokens, self._hashes, self._root = tokens, block_hashes, root
        self._size, self._mean, self._salt = block_size, mean_tokens, salt
        self._state = 0  # hash of all tokens

    def token(self, i: int) -> int:
        """Return the next token, number `i` of the output."""
        last = self._tokens[-1]
        if i and len(self._tokens) % self._size:
            self._state = _mix(self._state, last)
        else:
            self._state = self._hash_all()
        words = _WITHOUT_SPACE if not i and is_special(last) else _WITH_SPACE
        return words[(self._state >> 40) % len(words)]

    def ends(self, i: int) -> bool:
        return (self._state & 0xFFFF_FFFF) % self._mean == 0

    def _hash_all(self) -> int:
        full = len(self._tokens) // self._size
        block = self._hashes[full - 1] if full else self._root
        state = int.from_bytes(block[:8], "big") ^ self._salt
        for token in self._tokens[full * self._size :]:
            state = _mix(state, token)
        return state


def _mix(state: int, token: int) -> int:
    state = (state ^ token) * _MULTIPLIER & _MASK
    return state ^ state >> 29


class FixedGenerator:
    """An output that is known in advance."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def token(self, i: int) -> int:
        return self._tokens[i]

    def ends(self, i: int) -> bool:
        return i == len(self._tokens) - 1
