"""Seeded mutations of valid inputs."""

import random
from collections.abc import Sequence

INTERESTING = (
    b"\x00", b"\xff", b"\x80", b"\n", b"\r\n", b"{", b"[", b'"', b"\\", b"1e999", b"-1", b"NaN",
    b"9" * 40, b"\xc0", b"\xdf\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"null", b"\\ud800",
)  # fmt: skip
MAX_BYTES = 1 << 16


class Mutator:
    """Yields the valid inputs, then mutated ones. The same seed gives the same inputs."""

    def __init__(self, seeds: Sequence[bytes], seed: int) -> None:
        self._seeds, self._random = list(seeds), random.Random(seed)
        self._unchanged = iter(self._seeds)

    def next(self) -> bytes:
        """Return the next input: each seed once, then a seed with one to six changes."""
        if (data := next(self._unchanged, None)) is not None:
            return data
        changed = bytearray(self._random.choice(self._seeds))
        for _ in range(self._random.randint(1, 6)):
            self._change(changed)
        return bytes(changed[:MAX_BYTES])

    def _change(self, data: bytearray) -> None:
        pick = self._random
        at = pick.randint(0, len(data))
        end = min(len(data), at + pick.choice((1, 1, 2, 8, 64)))
        match pick.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << pick.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = pick.choice(INTERESTING)
            case 3:
                data[at:end] = pick.choice(INTERESTING)
            case 4:
                data[at:at] = data[at:end] * pick.choice((1, 2, 50))
            case _:
                other = pick.choice(self._seeds)
                data[at:end] = other[pick.randint(0, len(other)) :][: pick.choice((4, 32, 200))]
