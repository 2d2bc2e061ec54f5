"""The hit rate that routing could reach: the trace with caches of the same size.

Requests are computed one after the other, so that nothing is computed twice and no block is in use.
A cache holds the engines' blocks and evicts the least recently used one, the end of a prompt before
its start, as the engines do. The last token of a prompt never counts as cached.

    pooled   one cache with the blocks of all workers, as if each worker could read all caches
    placed   a cache per worker. A request goes to the worker with the most of its blocks, if these
             are more than a threshold, else to the worker that computed the fewest tokens. The
             result is that of the best threshold.
    oracle   the larger of the two; separate caches can protect blocks that are used again
    endless  caches of unlimited size
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.replay.trace import ENGINE_BLOCK, Request

THRESHOLDS = (0, 1, 2, 4, 8)  # in blocks of the trace

Key = tuple[int, int]  # (hash id, or -1 - number of the request for unique tokens; index)


class Oracle(msgspec.Struct, frozen=True):
    """Hit rates, 0 to 1."""

    pooled: float
    placed: float
    endless: float

    @property
    def best(self) -> float:
        return max(self.pooled, self.placed)


def oracle(requests: Sequence[Request], workers: int, blocks: int, *, answers: bool) -> Oracle:
    """Return the hit rates of `workers` with `blocks` each; `answers`: cache responses too."""
    return Oracle(
        pooled=pooled(requests, workers * blocks, answers=answers),
        placed=max(
            placed(requests, workers, blocks, threshold, answers=answers)
            for threshold in THRESHOLDS
        ),
        endless=pooled(requests, 1 << 60, answers=False),
    )


def pooled(requests: Sequence[Request], blocks: int, *, answers: bool) -> float:
    """Return the hit rate of one cache of this many blocks."""
    return placed(requests, 1, blocks, 0, answers=answers)


def placed(
    requests: Sequence[Request], workers: int, blocks: int, threshold: int, *, answers: bool
) -> float:
    """Return the hit rate of separate caches; see above for `threshold`."""
    caches = [Cache(blocks) for _ in range(workers)]
    found = 0
    for request in requests:
        keys = list(_prompt_keys(request))
        depths = [cache.depth(keys) for cache in caches]
        most = max(depths)
        worth = most > threshold * request.block_tokens // ENGINE_BLOCK
        able = [i for i, depth in enumerate(depths) if depth == most] if worth else range(workers)
        chosen = min(able, key=lambda i: caches[i].computed)
        hit = min(depths[chosen], (request.prompt - 1) // ENGINE_BLOCK) * ENGINE_BLOCK
        caches[chosen].add([*keys, *(_answer_keys(request) if answers else ())])
        caches[chosen].computed += request.prompt - hit
        found += hit
    return found / sum(r.prompt for r in requests)


class Cache:
    """Cached blocks of one worker; `computed` counts the tokens that it computed."""

    def __init__(self, blocks: int) -> None:
        self._most, self._kept = blocks, OrderedDict[Key, None]()
        self.computed = 0

    def depth(self, keys: Sequence[Key]) -> int:
        """Return the number of cached blocks from the start."""
        kept = self._kept
        return next((i for i, key in enumerate(keys) if key not in kept), len(keys))

    def add(self, keys: Sequence[Key]) -> None:
        """Mark all blocks as used; evict those beyond the capacity."""
        for key in reversed(keys):
            self._kept[key] = None
            self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


def _prompt_keys(request: Request) -> Iterator[Key]:
    parts = request.block_tokens // ENGINE_BLOCK
    for block in request.blocks:
        yield from ((block, part) for part in range(parts))
    yield from ((-1 - request.number, part) for part in range(request.tail // ENGINE_BLOCK))


def _answer_keys(request: Request) -> Iterator[Key]:
    """Yield the blocks filled by a response: they use the cache but match no prompt."""
    first = request.tail // ENGINE_BLOCK
    return (
        (-1 - request.number, part)
        for part in range(first, (request.tail + request.answer) // ENGINE_BLOCK)
    )
