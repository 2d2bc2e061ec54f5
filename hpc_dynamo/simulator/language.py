"""What the simulated model says: words chosen by the bytes of the KV cache, nothing else.

Greedy and deterministic: the i-th token depends on the seed and on i. Each word is one token,
so that an answer which comes back as the next prompt has the tokens that it had before.
"""

from hashlib import blake2b

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


class Speaker:
    """The answer to one prompt: `token(i)` for i = 0, 1, … and whether it would end there.

    `seed` comes from the KV cache, `last` is the prompt's last token (after a special token no
    space is said), `mean_tokens` the mean length of an answer that may end by itself.
    """

    def __init__(self, seed: bytes, last: int, mean_tokens: int) -> None:
        self._seed, self._mean = seed, mean_tokens
        self._first = _FIRST if is_special(last) else _INSIDE
        self._drawn = b""
        self._drawn_at = -1

    def token(self, i: int) -> int:
        words = _INSIDE if i else self._first
        return words[self._draw(i, 0) % len(words)]

    def ends(self, i: int) -> bool:
        """Whether the answer is complete with its token i."""
        return self._draw(i, 2) % self._mean == 0

    def _draw(self, i: int, offset: int) -> int:
        batch, at = divmod(i, _BATCH)
        if batch != self._drawn_at:
            salt = batch.to_bytes(16, "big")
            self._drawn = blake2b(self._seed, salt=salt, digest_size=4 * _BATCH).digest()
            self._drawn_at = batch
        start = 4 * at + offset
        return int.from_bytes(self._drawn[start : start + 2], "big")
