"""What the simulated model says: words chosen by the bytes of the KV cache, nothing else.

Greedy and deterministic: the i-th token depends on the seed and on i. Each word is one token,
so that an answer which comes back as the next prompt has the tokens that it had before. Where
a request asks for JSON the answer is a script instead.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Protocol

from hpc_dynamo.simulator.tokenizer import encode, is_special

_LEXICON = (
    "add age air all and ant any ape arc arm art ash ask axe bay bed bee big bit boa bow box "
    "bud bus buy cab cap cat cow cup cut day den dew dig dot dry due ear eat ebb egg elm end "
    "eye fan far few fig fin fir fit fly fog for fox fun fur gap gem get gin go gum had has "
    "hat hay hen her hid him hip his hop hot how hub hue hut ice ink inn ion it ivy jam jar "
    "jet jog joy jug key kin kit lab lad lap law lay leg let lid lip log lot low map may men "
    "met mix mud nap net new nod not now nut oak oar oat odd of oil old on one or ore our out "
    "owl own pan paw pea peg pen pet pie pin pit pod pot pup put ram ran raw ray red rib rim "
    "rod row rug run rye sad sap saw say sea see set she sit sky sly six son sow sun tan tap "
    "tar tea ten the tin tip to toe top toy try tub two up urn use van vat vet via war was wax "
    "way web wet who why wig win wit yak yam yes yet you zip"
)
WORDS = _LEXICON.split()
_INSIDE = [encode(f" {word}")[0] for word in WORDS]
_FIRST = [encode(word)[0] for word in WORDS]
_BATCH = 16  # tokens drawn from one digest, two bytes for the word and two for the end
_DRAW = Struct(f">{2 * _BATCH}H")


class Voice(Protocol):
    """An answer, token by token: `token(i)` for i = 0, 1, … and whether it would end there."""

    def token(self, i: int) -> int: ...
    def ends(self, i: int) -> bool: ...


class Speaker:
    """The answer to one prompt, in words.

    `seed` comes from the KV cache, `last` is the prompt's last token (after a special token no
    space is said), `mean_tokens` the mean length of an answer that may end by itself.
    """

    def __init__(self, seed: bytes, last: int, mean_tokens: int) -> None:
        self._seed, self._mean = seed, mean_tokens
        self._first = _FIRST if is_special(last) else _INSIDE
        self._drawn: tuple[int, ...] = ()
        self._drawn_at = -1

    def token(self, i: int) -> int:
        words = _INSIDE if i else self._first
        return words[self._draw(i, 0) % len(words)]

    def ends(self, i: int) -> bool:
        """Whether the answer is complete with its token i."""
        return self._draw(i, 1) % self._mean == 0

    def _draw(self, i: int, offset: int) -> int:
        batch, at = divmod(i, _BATCH)
        if batch != self._drawn_at:
            salt = batch.to_bytes(16, "big")
            digest = blake2b(self._seed, salt=salt, digest_size=4 * _BATCH).digest()
            self._drawn, self._drawn_at = _DRAW.unpack(digest), batch
        return self._drawn[2 * at + offset]


class Script:
    """An answer that is known beforehand."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def token(self, i: int) -> int:
        return self._tokens[i]

    def ends(self, i: int) -> bool:
        return i == len(self._tokens) - 1


def likely(token: int, i: int, count: int) -> list[tuple[int, float]]:
    """Made-up log-probabilities at place i of a text: of `token`, then of less likely ones.

    `count` in all, at least one. Their probabilities fall and sum up to less than 1.
    """
    draw = (token * 2654435761 + i * 40503) % 65536
    first = 0.5 + draw / 131073
    others = [
        word for word in (_INSIDE[(draw + j) % len(WORDS)] for j in range(count)) if word != token
    ]
    rest = [(word, math.log((1 - first) / 2 ** (j + 1))) for j, word in enumerate(others)]
    return [(token, math.log(first)), *rest[: count - 1]]
