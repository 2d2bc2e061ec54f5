"""Owners of blocks that must be loaded from a lower tier, see tiers.py."""

from collections.abc import Iterable, Mapping, Sequence

from hpc_dynamo.router.index.block_owners import BlockOwners, TargetKey, WorkerBits
from hpc_dynamo.router.index.tiers import LOWER_TIERS
from hpc_dynamo.router.index.worker_blocks import WorkerBlocks

TierCounts = dict[TargetKey, list[int]]
"""Number of a prompt's blocks in each of LOWER_TIERS, by worker"""


class LowerTierOwners:
    """Workers that have a block in a lower tier only, by the fastest tier of theirs that has it.

    It is False, and costs nothing, until a worker stores a block in a lower tier.
    """

    def __init__(self) -> None:
        self._owners = {tier: BlockOwners(64) for tier in LOWER_TIERS}
        self._used = set[int]()  # tiers that had blocks

    def __bool__(self) -> bool:
        return bool(self._used)

    def update(self, worker: WorkerBlocks, blocks: Iterable[int]) -> None:
        """Process changes of a worker's copies of some blocks."""
        for block in blocks:
            fastest = worker.fastest_tier(block)
            if fastest:
                self._used.add(fastest)
            for tier, owners in self._owners.items():
                change = owners.add if tier == fastest else owners.discard
                change((block,), worker.bit)

    def discard(self, blocks: Iterable[int], bit: int) -> None:
        """Remove a worker from the owners of the blocks."""
        for owners in self._owners.values():
            owners.discard(blocks, bit)

    def count(
        self, hashes: Sequence[int], cached: Mapping[TargetKey, int], workers: WorkerBits
    ) -> TierCounts:
        """Return how many of a prompt's first `cached` blocks each worker would have to load."""
        found = TierCounts()
        prefix = hashes[: max(cached.values(), default=0)]
        for index, (tier, owners) in enumerate(self._owners.items()):
            if tier not in self._used:
                continue
            for bits, start, end in owners.runs(prefix):
                for rank in workers.ranks_of(bits & workers.live):
                    if (blocks := min(end, cached.get(rank, 0)) - start) > 0:
                        found.setdefault(rank, [0] * len(LOWER_TIERS))[index] += blocks
        return found
