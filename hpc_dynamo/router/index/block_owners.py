"""The workers that have a block, as bits of one integer, by the block's hash.

Matching a prompt costs one look-up and one `and` per block, for any number of workers. Equal
integers are shared: all blocks with one owner refer to that worker's own bit object.
"""

from collections.abc import Iterable, Sequence
from itertools import compress

_FEW = 16  # up to this many set bits, finding each of them is faster
_FLAGS = bytes.maketrans(b"01", b"\0\1")
PrefixDepths = list[tuple[int, int]]
"""(workers as bits, number of blocks that they have from the start of a prompt)"""
TargetKey = int | tuple[int, int]
"""Owner of blocks: the rank of a worker, or (its rank, data-parallel rank) if it has several."""


def target_key(rank: int, dp_rank: int | None) -> TargetKey:
    return rank if dp_rank is None else (rank, dp_rank)


class BlockOwners:
    """Owners of each block, as an integer of worker bits.

    `partitions` is the number of dictionaries, a power of two. A dictionary that grows blocks the
    event loop in proportion to its size.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions: tuple[dict[int, int], ...] = tuple({} for _ in range(partitions))
        self._index_mask = partitions - 1

    def __len__(self) -> int:
        return sum(map(len, self.partitions))

    def get(self, block: int) -> int:
        return self.partitions[block & self._index_mask].get(block, 0)

    def add(self, blocks: Iterable[int], bit: int) -> list[int]:
        """Add a worker to the owners of the blocks; return the blocks that it already had."""
        partitions, low, known = self.partitions, self._index_mask, list[int]()
        for block in blocks:
            partition = partitions[block & low]
            if block in partition:
                known.append(block)
            else:
                partition[block] = bit
        return self._add_to_existing(known, bit) if known else known

    def _add_to_existing(self, blocks: list[int], bit: int) -> list[int]:
        """`add` for blocks that already have owners."""
        partitions, low, had, before, after = self.partitions, self._index_mask, list[int](), 0, bit
        for block in blocks:
            partition = partitions[block & low]
            owners = partition[block]
            # Consecutive blocks usually have the same owners.
            if owners is not before:
                before, after = owners, owners | bit
            if after == owners:
                had.append(block)
            else:
                partition[block] = after
        return had

    def discard(self, blocks: Iterable[int], bit: int) -> None:
        """Remove a worker from the owners of the blocks; blocks without owners are deleted."""
        partitions, low = self.partitions, self._index_mask
        for block in blocks:
            partition = partitions[block & low]
            owners = partition.get(block, 0)
            others = owners & ~bit
            if others:
                partition[block] = others
            elif owners:
                del partition[block]

    def runs(self, blocks: Iterable[int]) -> list[tuple[int, int, int]]:
        """Return owners, start and end of consecutive blocks with the same owners, if any."""
        partitions, low, found = self.partitions, self._index_mask, list[tuple[int, int, int]]()
        same, start, depth = 0, 0, 0
        for block in blocks:
            owners = partitions[block & low].get(block, 0)
            # The same object as for the block before: nothing changes.
            if owners is not same:
                if same:
                    found.append((same, start, depth))
                same, start = owners, depth
            depth += 1
        if same:
            found.append((same, start, depth))
        return found

    def match_prefix(
        self, blocks: Sequence[int], workers: int, whole: int, depths: PrefixDepths, start: int
    ) -> int:
        """Return the workers that have all the blocks; those in `whole` are known to.

        The others are appended to `depths` with the number of their blocks, counted from `start`.
        """
        partitions, low, same = self.partitions, self._index_mask, -1
        for depth, block in enumerate(blocks, start):
            owners = partitions[block & low].get(block, 0)
            # The same object as for the block before: nothing changes.
            if owners is same:
                continue
            same, remaining = owners, workers & owners
            if remaining != workers:
                depths.append((workers & ~remaining, depth))
                workers = remaining
                if not workers & ~whole:
                    break
        return workers


class WorkerBits:
    """Assigns a bit to each worker; freed bits are reused."""

    def __init__(self) -> None:
        self._ranks, self._free = list[TargetKey](), list[int]()
        self.live = 0

    def allocate(self, rank: TargetKey) -> int:
        index = self._free.pop() if self._free else len(self._ranks)
        self._ranks[index : index + 1] = [rank]
        bit = 1 << index
        self.live |= bit
        return bit

    def retire(self, bit: int) -> None:
        """End the use of a bit that owners may still contain."""
        self.live &= ~bit

    def free(self, bit: int) -> None:
        """Allow the reuse of a bit that no owners contain."""
        self._free.append(bit.bit_length() - 1)

    def depths(self, prefixes: PrefixDepths) -> dict[TargetKey, int]:
        """Return rank -> depth for depths above 0."""
        found = dict[TargetKey, int]()
        for bits, depth in prefixes:
            if depth:
                found.update(dict.fromkeys(self.ranks_of(bits), depth))
        return found

    def ranks_of(self, bits: int) -> Iterable[TargetKey]:
        """Return the workers of these bits."""
        if bits.bit_count() > _FEW:
            return compress(self._ranks, bin(bits)[:1:-1].encode().translate(_FLAGS))
        ranks = list[TargetKey]()
        while bits:
            index = bits.bit_length() - 1
            ranks.append(self._ranks[index])
            bits ^= 1 << index
        return ranks
