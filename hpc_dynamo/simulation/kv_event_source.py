"""What the cache of a modelled worker tells the router, as KV events would."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

from hpc_dynamo.kv.events import KvEventBatch, encode_events
from hpc_dynamo.router import KvState
from hpc_dynamo.simulation.cache import SimulatedCache


class KvEventSource:
    """Of one worker. The router's index is entered without the wire between: `tokens` gives
    those of a block by its hash."""

    def __init__(
        self, caches: KvState, rank: int, cache: SimulatedCache, tokens: Mapping[int, bytes]
    ) -> None:
        self._caches, self._rank, self._tokens, self._cache = caches, rank, tokens, cache
        self._parents = dict[int, int | None]()
        cache.on_evict = self._on_evict

    def republish(self) -> None:
        """The worker has joined anew: all that it has."""
        self._caches.receive_events(
            self._rank, 0, encode_events(KvEventBatch(time.time(), []))
        )  # it speaks
        for each in self._cache.cached_hashes:
            self._store([each], self._parents.get(each))

    def on_store(self, hashes: Sequence[int], new: Sequence[int]) -> None:
        """These blocks of a prompt can be found from now on."""
        for first, end in _runs(new):
            for i in range(first, end):
                self._parents[hashes[i]] = hashes[i - 1] if i else None
            self._store(hashes[first:end], hashes[first - 1] if first else None)

    def _store(self, hashes: Sequence[int], before: int | None) -> None:
        tokens = b"".join(self._tokens[each] for each in hashes)
        block = self._cache.block
        self._caches.confirmed.store(self._rank, hashes, before, tokens, block)

    def _on_evict(self, hashes: Sequence[int]) -> None:
        for each in hashes:
            self._parents.pop(each, None)
        self._caches.confirmed.remove(self._rank, hashes)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges without gaps."""
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    bounds = [0, *cuts, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(bounds)]
