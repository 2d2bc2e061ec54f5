"""Publishes the cache of a modelled worker to the router, like KV events."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

from hpc_dynamo.kv.events import KvEventBatch, encode_events
from hpc_dynamo.router import KvState, TargetKey
from hpc_dynamo.simulation.cache import SimulatedCache


class KvEventSource:
    """Event source of one worker or data-parallel rank, without a socket: updates the router.

    `tokens` maps the hash of a block to its token ids.
    """

    def __init__(
        self, kv_state: KvState, rank: TargetKey, cache: SimulatedCache, tokens: Mapping[int, bytes]
    ) -> None:
        self._kv_state, self._rank, self._tokens, self._cache = kv_state, rank, tokens, cache
        self._parents = dict[int, int | None]()
        cache.on_evict = self._on_evict

    def republish(self) -> None:
        """Publish all cached blocks after the worker was added to the router again."""
        # An empty batch marks the worker as one that publishes events.
        self._kv_state.receive_events(self._rank, 0, encode_events(KvEventBatch(time.time(), [])))
        for block_hash in self._cache.cached_hashes:
            self._store([block_hash], self._parents.get(block_hash))

    def on_store(self, hashes: Sequence[int], new: Sequence[int]) -> None:
        """Publish new blocks of a prompt; `new` are their indexes."""
        for first, end in _runs(new):
            for i in range(first, end):
                self._parents[hashes[i]] = hashes[i - 1] if i else None
            self._store(hashes[first:end], hashes[first - 1] if first else None)

    def _store(self, hashes: Sequence[int], parent: int | None) -> None:
        tokens = b"".join(self._tokens[block_hash] for block_hash in hashes)
        block = self._cache.block
        self._kv_state.confirmed.store(self._rank, hashes, parent, tokens, block)

    def _on_evict(self, hashes: Sequence[int]) -> None:
        for block_hash in hashes:
            self._parents.pop(block_hash, None)
        self._kv_state.confirmed.remove(self._rank, hashes)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as half-open ranges without gaps."""
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    bounds = [0, *cuts, len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(bounds)]
