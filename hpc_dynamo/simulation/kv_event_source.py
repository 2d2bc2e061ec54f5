"""What the cache of a modelled worker tells the router, as KV events would."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

from hpc_dynamo.kv.events import KvEventBatch, encode_events
from hpc_dynamo.router import Caches
from hpc_dynamo.simulation.cache import Cache


class Told:
    """Of one worker. The router's index is entered without the wire between: `tokens` gives
    those of a block by its hash."""

    def __init__(
        self, caches: Caches, rank: int, cache: Cache, tokens: Mapping[int, bytes]
    ) -> None:
        self._caches, self._rank, self._tokens, self._cache = caches, rank, tokens, cache
        self._before = dict[int, int | None]()
        cache.on_evict = self._evicted

    def again(self) -> None:
        """The worker has joined anew: all that it has."""
        self._caches.learn(self._rank, 0, encode_events(KvEventBatch(time.time(), [])))  # it speaks
        for each in self._cache.found:
            self._store([each], self._before.get(each))

    def stored(self, hashes: Sequence[int], new: Sequence[int]) -> None:
        """These blocks of a prompt can be found from now on."""
        for first, end in _runs(new):
            for i in range(first, end):
                self._before[hashes[i]] = hashes[i - 1] if i else None
            self._store(hashes[first:end], hashes[first - 1] if first else None)

    def _store(self, hashes: Sequence[int], before: int | None) -> None:
        tokens = b"".join(self._tokens[each] for each in hashes)
        block = self._cache.block
        self._caches.told.store(self._rank, hashes, before, tokens, block)

    def _evicted(self, hashes: Sequence[int]) -> None:
        for each in hashes:
            self._before.pop(each, None)
        self._caches.told.remove(self._rank, hashes)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges without gaps."""
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    bounds = [0, *cuts, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(bounds)]
