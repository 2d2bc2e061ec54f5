"""Who holds a block: workers as bits of one integer, by the block's hash.

A walk along a prompt costs a look-up and an `and` a block, whatever the number of workers. Integers
are shared where they can be: a block that one worker holds has that worker's own bit object.
"""

from collections.abc import Iterable, Sequence
from itertools import compress

_FEW = 16  # set bits, up to which it is quicker to look for each
_FLAGS = bytes.maketrans(b"01", b"\0\1")
PrefixDepths = list[tuple[int, int]]
"""Workers, as bits, and how many blocks they hold from the start of a prompt."""


class BlockOwners:
    """A mask for each block that anybody holds.

    In so many dictionaries, a power of two: one that grows stalls everything, by its size.
    """

    def __init__(self, parts: int) -> None:
        self.parts: tuple[dict[int, int], ...] = tuple({} for _ in range(parts))
        self._part = parts - 1

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def get(self, block: int) -> int:
        return self.parts[block & self._part].get(block, 0)

    def add(self, blocks: Iterable[int], bit: int) -> list[int]:
        """Returns the blocks that had the bit before."""
        partitions, low, known = self.parts, self._part, list[int]()
        for block in blocks:
            part = partitions[block & low]
            if block in part:
                known.append(block)
            else:
                part[block] = bit
        return self._add_to_existing(known, bit) if known else known

    def _add_to_existing(self, blocks: list[int], bit: int) -> list[int]:
        """`add` to blocks that others hold already, or the same worker."""
        parts, low, had, before, after = self.parts, self._part, list[int](), 0, bit
        for block in blocks:
            part = parts[block & low]
            mask = part[block]
            if mask is not before:  # neighbours have the same holders most often
                before, after = mask, mask | bit
            if after == mask:
                had.append(block)
            else:
                part[block] = after
        return had

    def discard(self, blocks: Iterable[int], bit: int) -> None:
        parts, low = self.parts, self._part
        for block in blocks:
            part = parts[block & low]
            mask = part.get(block, 0)
            left = mask & ~bit
            if left:
                part[block] = left
            elif mask:
                del part[block]

    def match_prefix(
        self, blocks: Sequence[int], alive: int, whole: int, left: PrefixDepths, start: int
    ) -> int:
        """Of the workers `alive`, those that hold all the blocks, as those of `whole` are known
        to. The others are put into `left`, with the number of blocks that they hold, counted
        from `start`."""
        parts, low, same = self.parts, self._part, -1
        for depth, block in enumerate(blocks, start):
            mask = parts[block & low].get(block, 0)
            if mask is same:  # the very object: nothing changes from one block to the next
                continue
            same, still = mask, alive & mask
            if still != alive:
                left.append((alive & ~still, depth))
                alive = still
                if not alive & ~whole:
                    break
        return alive


class WorkerBits:
    """A bit for each worker; one that was given back is used again."""

    def __init__(self) -> None:
        self._ranks, self._free = list[int](), list[int]()
        self.live = 0

    def allocate(self, rank: int) -> int:
        place = self._free.pop() if self._free else len(self._ranks)
        self._ranks[place : place + 1] = [rank]
        bit = 1 << place
        self.live |= bit
        return bit

    def retire(self, bit: int) -> None:
        """The worker is gone; its bit may still be in masks."""
        self.live &= ~bit

    def free(self, bit: int) -> None:
        """It is in no mask any more."""
        self._free.append(bit.bit_length() - 1)

    def depths(self, left: PrefixDepths) -> dict[int, int]:
        """By rank; those with none are left out."""
        found = dict[int, int]()
        for bits, depth in left:
            if depth:
                found.update(dict.fromkeys(self._ranks_of(bits), depth))
        return found

    def _ranks_of(self, bits: int) -> Iterable[int]:
        if bits.bit_count() > _FEW:
            return compress(self._ranks, bin(bits)[:1:-1].encode().translate(_FLAGS))
        ranks = list[int]()
        while bits:
            place = bits.bit_length() - 1
            ranks.append(self._ranks[place])
            bits ^= 1 << place
        return ranks
