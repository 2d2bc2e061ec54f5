"""Which worker has which blocks, guessed from where we sent them.

A block's holders are bits of one integer, so walking a prompt costs a dictionary look-up and
an `and` a block, whatever the number of workers. Bounded: the blocks unused for the longest are
forgotten first. A collision of 64-bit hashes sends one request to a worker that has less of its
prefix than was thought, which costs time and no correctness.
"""

from collections import OrderedDict


class ApproximateIndex:
    """`capacity` counts blocks over all workers; about 130 bytes each."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._holders = OrderedDict[int, int]()
        self._bits = dict[int, int]()  # of the workers here now, by rank
        self._ranks = dict[int, int]()  # by bit
        self._next = 1
        self._live = 0

    def __len__(self) -> int:
        return len(self._holders)

    def join(self, rank: int) -> None:
        """A worker with an empty cache. A bit is never used twice: what a former life of this
        rank held is not believed of the new one."""
        self.leave(rank)
        self._bits[rank], self._ranks[self._next] = self._next, rank
        self._live |= self._next
        self._next <<= 1

    def leave(self, rank: int) -> None:
        bit = self._bits.pop(rank, 0)
        self._ranks.pop(bit, None)
        self._live &= ~bit

    def add(self, rank: int, hashes: list[int]) -> None:
        """The worker is about to have these blocks, a prefix of one prompt."""
        bit, holders, live = self._bits.get(rank, 0), self._holders, self._live
        for block in reversed(hashes):  # what is forgotten first is the end of a prompt
            holders[block] = holders.get(block, 0) & live | bit
            holders.move_to_end(block)
        while len(holders) > self._capacity:
            holders.popitem(last=False)

    def overlaps(self, hashes: list[int]) -> dict[int, int]:
        """For each worker that has any: how many blocks from the start it has."""
        alive, depth, found = self._live, 0, dict[int, int]()
        get = self._holders.get
        for block in hashes:
            still = alive & get(block, 0)
            if still != alive:
                if depth:
                    self._record(alive & ~still, depth, found)
                alive = still
                if not alive:
                    return found
            depth += 1
        if depth:
            self._record(alive, depth, found)
        return found

    def _record(self, bits: int, depth: int, found: dict[int, int]) -> None:
        while bits:
            bit = bits & -bits  # the lowest that is set
            found[self._ranks[bit]] = depth
            bits ^= bit
