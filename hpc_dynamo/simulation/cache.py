"""LRU prefix cache of a modelled worker, in whole blocks of the load."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(eq=False)
class CacheHold:
    """Cache use of one sequence: shared blocks that others can match, and its own tokens."""

    shared: list[int] = field(default_factory=list)
    own_tokens: int = 0


class SimulatedCache:
    """Cache of `capacity` tokens, like simulator.blocks.BlockPool with blocks of the load.

    `on_evict` receives the hashes of evicted blocks.
    """

    def __init__(self, capacity: int, block: int) -> None:
        self.capacity, self.block = capacity, block
        self.on_evict: Callable[[Sequence[int]], None] = lambda hashes: None
        self.held_tokens = 0  # in use by sequences
        self._owner_counts = dict[int, int]()  # hash -> number of sequences, of cached blocks
        self._evictable = OrderedDict[int, int]()  # key -> tokens, least recently used first
        self._evictable_tokens = 0
        self._private_keys = count(-1, -1)  # for tokens that no prompt matches

    @property
    def usage(self) -> float:
        return self.held_tokens / self.capacity

    @property
    def cached_hashes(self) -> list[int]:
        """Return the hashes of the cached blocks in order of insertion."""
        return list(self._owner_counts)

    def match(self, hashes: Sequence[int]) -> int:
        """Return the number of cached blocks from the start."""
        known = self._owner_counts
        return next((i for i, each in enumerate(hashes) if each not in known), len(hashes))

    def acquire(self, hashes: Sequence[int], tokens: int) -> CacheHold | None:
        """Acquire these cached blocks and more tokens; return None if there is no room."""
        evictable = sum(self._evictable.get(block_hash, 0) for block_hash in hashes)
        if self.held_tokens + evictable + tokens > self.capacity:
            return None
        for block_hash in hashes:
            self._acquire_block(block_hash)
        self.held_tokens += tokens
        self._evict()
        return CacheHold(list(hashes), tokens)

    def publish(self, hold: CacheHold, hashes: Sequence[int]) -> list[int]:
        """Add completed blocks of a sequence; return the indexes of those that are new."""
        new = [i for i, block_hash in enumerate(hashes) if block_hash not in self._owner_counts]
        for i in new:
            self._owner_counts[hashes[i]] = 1
            hold.shared.append(hashes[i])
        hold.own_tokens -= self.block * len(new)
        return new

    def release(self, hold: CacheHold, kept_tokens: int) -> None:
        """Release a sequence; `kept_tokens` of its own tokens stay cached until evicted.

        The end of a sequence is evicted first.
        """
        self.held_tokens -= hold.own_tokens
        if 0 < kept_tokens <= hold.own_tokens:
            self._make_evictable(next(self._private_keys), kept_tokens)
        for block_hash in reversed(hold.shared):
            self._owner_counts[block_hash] -= 1
            if not self._owner_counts[block_hash]:
                self.held_tokens -= self.block
                self._make_evictable(block_hash, self.block)

    def clear(self) -> None:
        """Drop all blocks. No sequence may use the cache."""
        self._owner_counts.clear()
        self._evictable.clear()
        self._evictable_tokens = 0

    def _make_evictable(self, key: int, tokens: int) -> None:
        self._evictable[key] = tokens
        self._evictable_tokens += tokens

    def _acquire_block(self, block_hash: int) -> None:
        if not self._owner_counts[block_hash]:
            self._evictable_tokens -= self._evictable.pop(block_hash)
            self.held_tokens += self.block
        self._owner_counts[block_hash] += 1

    def _evict(self) -> None:
        evicted = list[int]()
        while self.held_tokens + self._evictable_tokens > self.capacity:
            key, tokens = self._evictable.popitem(last=False)
            self._evictable_tokens -= tokens
            if key >= 0:
                del self._owner_counts[key]
                evicted.append(key)
        if evicted:
            self.on_evict(evicted)
