"""The prefix cache of a modelled worker, in whole blocks of the load: who holds what, LRU."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(eq=False)
class Hold:
    """What one sequence keeps: blocks that others may find, and tokens that are its own."""

    shared: list[int] = field(default_factory=list)
    own: int = 0


class Cache:
    """Of `capacity` tokens, as simulator.blocks.BlockPool, with a block of the load as one piece.

    `on_evict` gets the hashes that can be found no more.
    """

    def __init__(self, capacity: int, block: int) -> None:
        self.capacity, self.block = capacity, block
        self.on_evict: Callable[[Sequence[int]], None] = lambda hashes: None
        self.held = 0  # tokens that somebody holds
        self._holders = dict[int, int]()  # by hash, of those that can be found
        self._free = OrderedDict[int, int]()  # their tokens, those of longest ago first
        self._kept = 0  # tokens of these
        self._names = count(-1, -1)  # of what no prompt begins with

    @property
    def usage(self) -> float:
        return self.held / self.capacity

    @property
    def found(self) -> list[int]:
        """Hashes of the blocks that can be found, as they came."""
        return list(self._holders)

    def match(self, hashes: Sequence[int]) -> int:
        """How many blocks from the start are here."""
        holders = self._holders
        return next((i for i, each in enumerate(hashes) if each not in holders), len(hashes))

    def take(self, hashes: Sequence[int], tokens: int) -> Hold | None:
        """Hold these blocks, which are here, and so many more tokens; None if there is no room."""
        idle = sum(self._free.get(each, 0) for each in hashes)
        if self.held + idle + tokens > self.capacity:
            return None
        for each in hashes:
            self._hold(each)
        self.held += tokens
        self._shrink()
        return Hold(list(hashes), tokens)

    def publish(self, hold: Hold, hashes: Sequence[int]) -> list[int]:
        """These blocks of a hold are complete. Indexes of those that nobody had."""
        new = [i for i, each in enumerate(hashes) if each not in self._holders]
        for i in new:
            self._holders[hashes[i]] = 1
            hold.shared.append(hashes[i])
        hold.own -= self.block * len(new)
        return new

    def release(self, hold: Hold, kept: int) -> None:
        """Let go; `kept` of its own tokens hold a prompt's end and an answer, which take room as
        all that is cached. The end goes first."""
        self.held -= hold.own
        if 0 < kept <= hold.own:
            self._keep(next(self._names), kept)
        for each in reversed(hold.shared):
            self._holders[each] -= 1
            if not self._holders[each]:
                self.held -= self.block
                self._keep(each, self.block)

    def clear(self) -> None:
        """Forget all. Nobody may hold anything."""
        self._holders.clear()
        self._free.clear()
        self._kept = 0

    def _keep(self, name: int, tokens: int) -> None:
        self._free[name] = tokens
        self._kept += tokens

    def _hold(self, each: int) -> None:
        if not self._holders[each]:
            self._kept -= self._free.pop(each)
            self.held += self.block
        self._holders[each] += 1

    def _shrink(self) -> None:
        gone = list[int]()
        while self.held + self._kept > self.capacity:
            name, tokens = self._free.popitem(last=False)
            self._kept -= tokens
            if name >= 0:
                del self._holders[name]
                gone.append(name)
        if gone:
            self.on_evict(gone)
