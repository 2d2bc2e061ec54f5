"""Index of the KV blocks that workers are expected to have, from the prompts sent to them."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from hpc_dynamo.router.index.block_owners import BlockOwners, PrefixDepths, TargetKey, WorkerBits

_PARTITIONS = 64


class ApproximateIndex:
    """Expected blocks, dropped between `ttl_s / 2` and `ttl_s` after their last use.

    There are two generations. Prompts are added to the young one. After half the time, or at half
    the capacity, it becomes the old one, and the previous old one is dropped. `capacity` counts
    blocks over all workers and both generations. Only the start of a prompt is kept if it is longer
    than half the capacity. A block takes about 66 bytes.

    Prompts are added whole. In a generation, a worker with a block thus has all blocks before it,
    and the depth of a prompt is found by bisection. This requires chained hashes (hashes.py).
    """

    def __init__(
        self, capacity: int, ttl_s: float = 120.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._half, self._half_life_s, self._clock = max(1, capacity // 2), ttl_s / 2, clock
        self._young, self._old = BlockOwners(_PARTITIONS), BlockOwners(_PARTITIONS)
        self._entered, self._since = 0, clock()  # blocks in the young generation, and its start
        self._bits, self._bit_by_rank = WorkerBits(), dict[TargetKey, int]()
        self._retired_young, self._retired_old = (
            list[int](),
            list[int](),
        )  # bits that owners may contain
        self._dropped = list[dict[int, int]]()

    def __len__(self) -> int:
        """Return the number of blocks; a block in both generations counts twice."""
        return len(self._young) + len(self._old)

    def add_worker(self, rank: TargetKey) -> None:
        """Add a worker without expected blocks."""
        self.remove_worker(rank)
        self._bit_by_rank[rank] = self._bits.allocate(rank)

    def remove_worker(self, rank: TargetKey) -> None:
        bit = self._bit_by_rank.pop(rank, 0)
        if bit:
            self._bits.retire(bit)
            self._retired_young.append(bit)

    def add(self, rank: TargetKey, hashes: Sequence[int]) -> None:
        """Expect these blocks, from the start of a prompt, on the worker."""
        bit = self._bit_by_rank.get(rank)
        if bit is None:
            return
        self._expire()
        start = hashes[: self._half]
        known = _depth(self._young, start, bit, 0)
        if self._entered + len(start) - known > self._half:
            self._rotate(self._clock())
            known = 0
        self._young.add(start[known:], bit)
        self._entered += len(start) - known

    def discard(self, rank: TargetKey, hashes: Sequence[int]) -> None:
        """Remove blocks that the worker has evicted.

        Engines evict a prompt from its end, so the remaining blocks are still its start.
        """
        bit = self._bit_by_rank.get(rank, 0)
        for owners in (self._young, self._old):
            if bit and len(owners):
                owners.discard(hashes, bit)

    def overlaps(self, hashes: Sequence[int]) -> dict[TargetKey, int]:
        """Return rank -> number of expected blocks from the start, if above 0."""
        self._expire()
        found = self._depths(self._old, hashes)
        for rank, depth in self._depths(self._young, hashes).items():
            found[rank] = max(depth, found.get(rank, 0))
        return found

    def _depths(self, owners: BlockOwners, hashes: Sequence[int]) -> dict[TargetKey, int]:
        depth, workers, depths = 0, self._bits.live, PrefixDepths()
        while workers and depth < len(hashes):
            remaining = workers & owners.get(hashes[depth])
            depths.append((workers & ~remaining, depth))
            workers = remaining
            depth = _depth(owners, hashes, workers, depth)
        depths.append((workers, depth))
        return self._bits.depths(depths)

    def _expire(self) -> None:
        """Rotate generations that have expired, and free one partition of a dropped generation."""
        now = self._clock()
        for _ in range(2):
            if now - self._since >= self._half_life_s:
                self._rotate(self._since + self._half_life_s)
        if now - self._since >= self._half_life_s:  # unused for long: both are empty
            self._since = now
        if self._dropped:
            self._dropped.pop()

    def _rotate(self, now: float) -> None:
        # Freeing all partitions at once would block the event loop.
        self._dropped = list(self._old.partitions)
        self._old, self._young = self._young, BlockOwners(_PARTITIONS)
        self._entered, self._since = 0, now
        for bit in self._retired_old:
            self._bits.free(bit)
        self._retired_old, self._retired_young = self._retired_young, []


def _depth(owners: BlockOwners, hashes: Sequence[int], bits: int, start: int) -> int:
    """Return the index of the first block that not all workers in `bits` have."""
    return bisect_left(hashes, True, lo=start, key=lambda h: bits & ~owners.get(h) != 0)
