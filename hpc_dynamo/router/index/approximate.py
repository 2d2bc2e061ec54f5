"""Which worker has which blocks, guessed from where we sent prompts."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from hpc_dynamo.router.index.block_owners import BlockOwners, PrefixDepths, WorkerBits

_PARTS = 64


class ApproximateIndex:
    """Forgets what was not used for `ttl_s`, at the latest, and for half of that at the earliest.

    Two generations: a prompt goes into the young one, which becomes the old one after half the
    time or with half the capacity, and the old one is dropped. `capacity` counts blocks over all
    workers and both generations, each time that one was entered; of a prompt longer than half of
    it the start is remembered. About 66 bytes a block.

    Prompts are entered whole, so in a generation who has a block has all before it: how much of
    a prompt is there is found by bisection. For the same reason hashes must be chained
    (hashes.chain). Collisions: as in PrefixIndex, for `ttl_s`.
    """

    def __init__(
        self, capacity: int, ttl_s: float = 120.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._half, self._half_life_s, self._clock = max(1, capacity // 2), ttl_s / 2, clock
        self._young, self._old = BlockOwners(_PARTS), BlockOwners(_PARTS)
        self._entered, self._since = 0, clock()  # blocks in the young one; its start
        self._bits, self._bit_by_rank = WorkerBits(), dict[int, int]()  # bits by rank
        self._retired_young, self._retired_old = list[int](), list[int]()  # that may be in masks
        self._dropped = list[dict[int, int]]()

    def __len__(self) -> int:
        """Blocks remembered; one that is in both generations counts twice."""
        return len(self._young) + len(self._old)

    def add_worker(self, rank: int) -> None:
        """A worker with an empty cache: nothing of a former life is believed of the new one."""
        self.remove_worker(rank)
        self._bit_by_rank[rank] = self._bits.allocate(rank)

    def remove_worker(self, rank: int) -> None:
        bit = self._bit_by_rank.pop(rank, 0)
        if bit:
            self._bits.retire(bit)
            self._retired_young.append(bit)

    def add(self, rank: int, hashes: Sequence[int]) -> None:
        """The worker is about to have these blocks, from the start of a prompt."""
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

    def discard(self, rank: int, hashes: Sequence[int]) -> None:
        """Remove blocks that the worker has evicted. Engines evict a prompt from its end, so the
        remaining blocks are still the start of a prompt."""
        bit = self._bit_by_rank.get(rank, 0)
        for holders in (self._young, self._old):
            if bit and len(holders):
                holders.discard(hashes, bit)

    def overlaps(self, hashes: Sequence[int]) -> dict[int, int]:
        """For each worker that has any: how many blocks from the start it has."""
        self._expire()
        found = self._depths(self._old, hashes)
        for rank, depth in self._depths(self._young, hashes).items():
            found[rank] = max(depth, found.get(rank, 0))
        return found

    def _depths(self, holders: BlockOwners, hashes: Sequence[int]) -> dict[int, int]:
        depth, alive, left = 0, self._bits.live, PrefixDepths()
        while alive and depth < len(hashes):
            still = alive & holders.get(hashes[depth])
            left.append((alive & ~still, depth))
            alive = still
            depth = _depth(holders, hashes, alive, depth)
        left.append((alive, depth))
        return self._bits.depths(left)

    def _expire(self) -> None:
        """Turn generations whose time is over, and free a little of what was dropped."""
        now = self._clock()
        for _ in range(2):
            if now - self._since >= self._half_life_s:
                self._rotate(self._since + self._half_life_s)
        if now - self._since >= self._half_life_s:  # nobody asked for long: both are empty
            self._since = now
        if self._dropped:
            self._dropped.pop()

    def _rotate(self, now: float) -> None:
        self._dropped = list(self._old.parts)  # all at once would stall the event loop
        self._old, self._young = self._young, BlockOwners(_PARTS)
        self._entered, self._since = 0, now
        for bit in self._retired_old:
            self._bits.free(bit)
        self._retired_old, self._retired_young = self._retired_young, []


def _depth(holders: BlockOwners, hashes: Sequence[int], bits: int, start: int) -> int:
    """The first of the blocks, which are chained, that not all of `bits` have."""
    return bisect_left(hashes, True, lo=start, key=lambda h: bits & ~holders.get(h) != 0)
