"""Deterministic output of the simulated model.

The bytes of the KV cache select the words. The token at position i depends only on a seed and
on i. Each word is one token, so an output that is sent back in the next prompt keeps its tokens.
A request for structured output gets fixed tokens instead.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Protocol

from hpc_dynamo.simulator.tokenizer import encode, is_special

WORDS = [a + b + c for a in "blmnprstv" for b in "aeiou" for c in "lmnr"]
_WITH_SPACE = [encode(f" {word}")[0] for word in WORDS]
_WITHOUT_SPACE = [encode(word)[0] for word in WORDS]
_BATCH = 16  # tokens per digest: two bytes select the word, two decide whether the output ends
_DRAWS = Struct(f">{2 * _BATCH}H")


class TokenGenerator(Protocol):
    """Produces an output token by token: `token(i)` for i = 0, 1, …"""

    def token(self, i: int) -> int: ...

    def ends(self, i: int) -> bool:
        """Return True if the output may end after token i."""


class WordGenerator:
    """Random words as the output of one prompt.

    `seed` comes from the KV cache, and `mean_tokens` is the mean output length. If the prompt's
    `last` token is special, the first word has no leading space.
    """

    def __init__(self, seed: bytes, last: int, mean_tokens: int) -> None:
        self._seed, self._mean = seed, mean_tokens
        self._first_words = _WITHOUT_SPACE if is_special(last) else _WITH_SPACE
        self._draws: tuple[int, ...] = ()
        self._drawn_batch = -1

    def token(self, i: int) -> int:
        words = _WITH_SPACE if i else self._first_words
        return words[self._draw(i, 0) % len(words)]

    def ends(self, i: int) -> bool:
        return self._draw(i, 1) % self._mean == 0

    def _draw(self, i: int, offset: int) -> int:
        batch, at = divmod(i, _BATCH)
        if batch != self._drawn_batch:
            salt = batch.to_bytes(16, "big")
            digest = blake2b(self._seed, salt=salt, digest_size=4 * _BATCH).digest()
            self._draws, self._drawn_batch = _DRAWS.unpack(digest), batch
        return self._draws[2 * at + offset]


class FixedGenerator:
    """An output that is known in advance."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def token(self, i: int) -> int:
        return self._tokens[i]

    def ends(self, i: int) -> bool:
        return i == len(self._tokens) - 1
