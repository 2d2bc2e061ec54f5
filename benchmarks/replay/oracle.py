"""The hit rate that routing could have reached: the trace against caches of the same size.

Requests come one after the other; each is over before the next comes, so nothing is computed
twice because it is not there yet, and no block is held. A cache keeps the engines' blocks, the one
unused for longest goes first, and of one prompt its end before its beginning, as in the engines.
What a request found counts in tokens, its last token never (it is computed to begin the answer).

    pooled   one cache with the blocks of all workers: what a router could reach if every worker
             could read the caches of all others. Nothing is kept twice.
    placed   a cache for each worker, and each request on one of them: on the one that has the
             most of it, where that is more than a few blocks of the trace, else on the one that
             has computed the least so far. The best of a few such thresholds.
    oracle   the larger of the two. `pooled` is no bound for all placements: separate caches can
             keep what is used again from what is not.
    endless  no block is ever forgotten: what the trace itself allows.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.replay.trace import ENGINE_BLOCK, Request

THRESHOLDS = (0, 1, 2, 4, 8)  # blocks of the trace

Key = tuple[int, int]  # (hash id, or -1 - a request's number for what is its own; part of it)


class Oracle(msgspec.Struct, frozen=True):
    """Hit rates, 0 to 1."""

    pooled: float
    placed: float
    endless: float

    @property
    def best(self) -> float:
        return max(self.pooled, self.placed)


def oracle(requests: Sequence[Request], workers: int, blocks: int, *, answers: bool) -> Oracle:
    """Of `workers` that prefill, with `blocks` each. `answers`: they also keep what they say."""
    return Oracle(
        pooled=pooled(requests, workers * blocks, answers=answers),
        placed=max(
            placed(requests, workers, blocks, threshold, answers=answers)
            for threshold in THRESHOLDS
        ),
        endless=pooled(requests, 1 << 60, answers=False),
    )


def pooled(requests: Sequence[Request], blocks: int, *, answers: bool) -> float:
    """The hit rate of one cache of so many blocks."""
    return placed(requests, 1, blocks, 0, answers=answers)


def placed(
    requests: Sequence[Request], workers: int, blocks: int, threshold: int, *, answers: bool
) -> float:
    """The hit rate of separate caches; see above for `threshold`."""
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
    """The blocks of one worker; `computed` counts the tokens that it had to compute."""

    def __init__(self, blocks: int) -> None:
        self._most, self._kept = blocks, OrderedDict[Key, None]()
        self.computed = 0

    def depth(self, keys: Sequence[Key]) -> int:
        """How many blocks from the start are here."""
        kept = self._kept
        return next((i for i, key in enumerate(keys) if key not in kept), len(keys))

    def add(self, keys: Sequence[Key]) -> None:
        """Used now, all of them; what is too much goes."""
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
    """Blocks that are full with the answer: nobody asks for them, but they take room."""
    first = request.tail // ENGINE_BLOCK
    return (
        (-1 - request.number, part)
        for part in range(first, (request.tail + request.answer) // ENGINE_BLOCK)
    )
