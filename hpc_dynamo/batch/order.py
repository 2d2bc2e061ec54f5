"""The order in which a batch is sent: requests that share a prefix meet the cache that has it.

The prompts of a window are sorted, so that each follows the one it shares most with, and cut into
as many runs of neighbours as there are workers that compute prompts. One request of each run is
taken in turn. The router sends a request to the worker that has most of its prefix, so each worker
walks along a run of its own and computes a shared prefix once.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, zip_longest
from typing import Any, TypeVar

import msgspec

from hpc_dynamo.batch.requests import Entry, Reader

WINDOW_REQUESTS, WINDOW_BYTES = 8192, 64 << 20  # sorted at a time, at most
STEP_BYTES = 64  # shared prefixes that differ by less are alike: a few KV blocks of English

T = TypeVar("T")


class PrefixOrder:
    """Hands out the entries of a batch, each once, a window of the file at a time.

    Args:
        entries: in the order of the input.
        runs: workers that compute prompts; 0 keeps the order of the input.
    """

    def __init__(self, entries: Sequence[Entry], reader: Reader, runs: int) -> None:
        self._entries, self._reader, self._runs = entries, reader, runs
        self._taken = 0  # entries that were in a window
        self._window = deque[Entry]()
        self._lock = asyncio.Lock()

    async def take(self) -> Entry | None:
        """Return the next entry, None after the last. Sorts in a thread when a window begins."""
        async with self._lock:
            if not self._window and self._taken < len(self._entries):
                self._window.extend(await self._next_window())
        return self._window.popleft() if self._window else None

    async def _next_window(self) -> Sequence[Entry]:
        window = list(_window(self._entries, self._taken))
        self._taken += len(window)
        return await asyncio.to_thread(self._sorted, window) if self._runs else window

    def _sorted(self, window: Sequence[Entry]) -> Sequence[Entry]:
        keys = [prefix_key(self._reader.read(entry)[1]) for entry in window]
        return list(interleave(window, keys, self._runs))


def _window(entries: Sequence[Entry], first: int) -> Iterator[Entry]:
    size = 0
    for entry in islice(entries, first, first + WINDOW_REQUESTS):
        size += entry.size
        if size > WINDOW_BYTES and entry is not entries[first]:
            return
        yield entry


def prefix_key(body: Mapping[str, Any]) -> bytes:
    """Return bytes that begin alike for prompts that begin alike, tokenized or not.

    `body` is that of a chat or a completion. What chat templates put first, the tools, comes first.
    A list of prompts counts as its first prompt.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    head = f"{body.get('model')}\0".encode("utf-8", "replace")
    if isinstance(prompt, str):
        return head + prompt.encode("utf-8", "replace")
    if isinstance(prompt, list):
        return head + _ids(prompt)
    return head + _json(body.get("tools")) + _json(body.get("messages"))


def _ids(prompt: list[Any]) -> bytes:
    try:
        return array("I", prompt).tobytes()
    except (TypeError, OverflowError):  # not token ids; the engine will refuse them
        return b""


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value) if value else b""


def interleave(items: Sequence[T], keys: Sequence[bytes], runs: int) -> Iterator[T]:
    """Yield the items, one of each run in turn; `keys` are theirs, see `prefix_key`.

    The items of a run are neighbours in the order of their keys, its borders are near where equal
    shares would end and as far as possible between prefixes.
    """
    order = sorted(range(len(items)), key=keys.__getitem__)
    borders = _borders([keys[i] for i in order], runs)
    for turn in zip_longest(*(order[i:j] for i, j in pairwise(borders))):
        yield from (items[i] for i in turn if i is not None)


def _borders(keys: Sequence[bytes], runs: int) -> list[int]:
    """Return where each of `runs` runs of sorted `keys` begins, and the end of the last."""
    share = len(keys) / runs
    inner = [_border(keys, share * i, share / 2) for i in range(1, runs)]
    return [0, *inner, len(keys)]


def _border(keys: Sequence[bytes], ideal: float, most: float) -> int:
    """Return the place within `most` of `ideal` whose two neighbours share least."""
    near = range(max(1, round(ideal - most)), min(len(keys), round(ideal + most) + 1))
    return min(
        near,
        key=lambda i: (_shared(keys[i - 1], keys[i]) // STEP_BYTES, abs(i - ideal)),
        default=round(ideal),
    )


def _shared(one: bytes, other: bytes) -> int:
    """Return how many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
