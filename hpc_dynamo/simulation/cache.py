"""The prefix cache of a modelled worker, in whole blocks of the load: who holds what, LRU."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(eq=False)
class CacheHold:
    """What one sequence keeps: blocks that others may find, and tokens that are its own."""

    shared: list[int] = field(default_factory=list)
    own: int = 0


class SimulatedCache:
    """Of `capacity` tokens, as simulator.blocks.BlockPool, with a block of the load as one piece.

    `on_evict` gets the hashes that can be found no more.
    """

    def __init__(self, capacity: int, block: int) -> None:
        self.capacity, self.block = capacity, block
        self.on_evict: Callable[[Sequence[int]], None] = lambda hashes: None
        self.held_tokens = 0  # tokens that somebody holds
        self._owner_counts = dict[int, int]()  # by hash, of those that can be found
        self._evictable = OrderedDict[int, int]()  # their tokens, those of longest ago first
        self._evictable_tokens = 0  # tokens of these
        self._names = count(-1, -1)  # of what no prompt begins with

    @property
    def usage(self) -> float:
        return self.held_tokens / self.capacity

    @property
    def cached_hashes(self) -> list[int]:
        """Hashes of the blocks that can be found, as they came."""
        return list(self._owner_counts)

    def match(self, hashes: Sequence[int]) -> int:
        """How many blocks from the start are here."""
        holders = self._owner_counts
        return next((i for i, each in enumerate(hashes) if each not in holders), len(hashes))

    def acquire(self, hashes: Sequence[int], tokens: int) -> CacheHold | None:
        """Hold these blocks, which are here, and so many more tokens; None if there is no room."""
        idle = sum(self._evictable.get(each, 0) for each in hashes)
        if self.held_tokens + idle + tokens > self.capacity:
            return None
        for each in hashes:
            self._hold(each)
        self.held_tokens += tokens
        self._shrink()
        return CacheHold(list(hashes), tokens)

    def publish(self, hold: CacheHold, hashes: Sequence[int]) -> list[int]:
        """These blocks of a hold are complete. Indexes of those that nobody had."""
        new = [i for i, each in enumerate(hashes) if each not in self._owner_counts]
        for i in new:
            self._owner_counts[hashes[i]] = 1
            hold.shared.append(hashes[i])
        hold.own -= self.block * len(new)
        return new

    def release(self, hold: CacheHold, kept: int) -> None:
        """Let go; `kept` of its own tokens hold a prompt's end and an answer, which take room as
        all that is cached. The end goes first."""
        self.held_tokens -= hold.own
        if 0 < kept <= hold.own:
            self._keep(next(self._names), kept)
        for each in reversed(hold.shared):
            self._owner_counts[each] -= 1
            if not self._owner_counts[each]:
                self.held_tokens -= self.block
                self._keep(each, self.block)

    def clear(self) -> None:
        """Forget all. Nobody may hold anything."""
        self._owner_counts.clear()
        self._evictable.clear()
        self._evictable_tokens = 0

    def _keep(self, name: int, tokens: int) -> None:
        self._evictable[name] = tokens
        self._evictable_tokens += tokens

    def _hold(self, each: int) -> None:
        if not self._owner_counts[each]:
            self._evictable_tokens -= self._evictable.pop(each)
            self.held_tokens += self.block
        self._owner_counts[each] += 1

    def _shrink(self) -> None:
        gone = list[int]()
        while self.held_tokens + self._evictable_tokens > self.capacity:
            name, tokens = self._evictable.popitem(last=False)
            self._evictable_tokens -= tokens
            if name >= 0:
                del self._owner_counts[name]
                gone.append(name)
        if gone:
            self.on_evict(gone)
