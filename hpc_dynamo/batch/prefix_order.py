"""Order of the requests of a batch, so that requests with a shared prefix reach one KV cache.

The prompts of a window of the file are sorted, so that each is next to those that it shares most
with. The sorted list is cut into one group of neighbours for each worker that computes prompts, and
requests are taken from the groups in turn. The router sends a request to the worker that has most
of its prefix. So each worker processes one group and computes a shared prefix once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise

from hpc_dynamo.batch.input_file import RequestEntry, RequestReader
from hpc_dynamo.json_reader import Fields

WINDOW_REQUESTS, WINDOW_BYTES = 8192, 64 << 20  # maximum size of a window
POLL_INTERVAL_S = 0.1  # between two checks for workers that have become ready
# Lengths of shared prefixes are compared in steps of a few KV blocks of English text.
PREFIX_STEP_BYTES = 64


@dataclass(eq=False)
class PrefixGroup:
    """Neighbours in the sorted order of a window."""

    waiting: deque[RequestEntry]
    running: int = 0  # requests that were taken and have no result yet


@dataclass(frozen=True, slots=True)
class DispatchedEntry:
    """A request to send. `PrefixOrder.done` must be called when it has a result."""

    entry: RequestEntry
    group: PrefixGroup


class PrefixOrder:
    """Returns each entry of a batch once, one window of the file at a time.

    While workers are missing, only as many groups are open as workers are ready. So workers that
    become ready later get groups of their own.

    Args:
        entries: requests in the order of the input.
        reader: reads their prompts.
        workers: number of workers that compute prompts; 0 keeps the order of the input.
        ready: returns the number of these workers that are ready now.
    """

    def __init__(
        self, entries: Sequence[RequestEntry], reader: RequestReader, workers: int,
        ready: Callable[[], int],
    ) -> None:  # fmt: skip
        self._entries, self._reader = entries, reader
        self._workers, self._ready = workers, ready
        self._next_entry = 0  # first entry after the current window
        self._waiting = deque[PrefixGroup]()  # groups of the window that are not open yet
        self._open = deque[PrefixGroup]()  # requests are taken from them in turn
        self._finishing = 0  # groups with all requests taken and some results missing
        self._lock, self._group_finished = asyncio.Lock(), asyncio.Event()

    async def take(self) -> DispatchedEntry | None:
        """Return the next request, None after the last. Waits if each ready worker has a group."""
        async with self._lock:
            while True:
                self._open_groups()
                if self._open:
                    return self._pop()
                if not self._waiting and not await self._read_window():
                    return None
                if self._full:
                    await self._wait()

    def done(self, taken: DispatchedEntry) -> None:
        """Record that a request has a result."""
        taken.group.running -= 1
        if not taken.group.running and not taken.group.waiting:
            self._finishing -= 1
            self._group_finished.set()

    @property
    def _full(self) -> bool:
        """Return True if workers are missing and each ready one has a group."""
        ready = self._ready()
        return ready < self._workers and len(self._open) + self._finishing >= max(ready, 1)

    def _open_groups(self) -> None:
        while self._waiting and not self._full:
            self._open.append(self._waiting.popleft())

    async def _wait(self) -> None:
        """Wait for the end of a group or for the next check for ready workers."""
        self._group_finished.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL_S):
                await self._group_finished.wait()

    def _pop(self) -> DispatchedEntry:
        group = self._open.popleft()
        group.running += 1
        entry = group.waiting.popleft()
        if group.waiting:
            self._open.append(group)
        else:
            self._finishing += 1
        return DispatchedEntry(entry, group)

    async def _read_window(self) -> bool:
        """Sort the next window into groups, in a thread. Return False after the last window."""
        window = list(_window(self._entries, self._next_entry))
        self._next_entry += len(window)
        groups: Sequence[Sequence[int]] = [range(len(window))]
        if self._workers:
            keys = await asyncio.to_thread(self._keys, window)
            groups = prefix_groups(keys, self._workers)
        self._waiting.extend(
            PrefixGroup(deque(window[i] for i in group)) for group in groups if group
        )
        return bool(window)

    def _keys(self, window: Sequence[RequestEntry]) -> list[bytes]:
        return [prefix_key(self._reader.read(entry)[1]) for entry in window]


def _window(entries: Sequence[RequestEntry], first: int) -> Iterator[RequestEntry]:
    size = 0
    for entry in islice(entries, first, first + WINDOW_REQUESTS):
        size += entry.size
        if size > WINDOW_BYTES and entry is not entries[first]:
            return
        yield entry


def prefix_key(body: Fields) -> bytes:
    """Return bytes that share a prefix if the prompts do.

    They are the JSON of the fields that make up the prompt. The tools come first, as in chat
    templates. A list of prompts counts as its first prompt.
    """
    prompt = bytes(body.get("prompt", b"")).lstrip(b" [")
    fields = (bytes(body.get(name, b"")) for name in ("model", "tools", "messages"))
    return b"\0".join(fields) + prompt


def prefix_groups(keys: Sequence[bytes], count: int) -> list[list[int]]:
    """Return the positions of `keys` in at most `count` groups of neighbours in sorted order.

    Groups have nearly equal sizes, and are separated between prompts that share little.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    borders = _borders([keys[i] for i in order], count)
    return [order[begin:end] for begin, end in pairwise(borders) if begin < end]


def _borders(keys: Sequence[bytes], groups: int) -> list[int]:
    """Return where each group of sorted `keys` begins, and the end of the last."""
    share = len(keys) / groups
    inner = [_border(keys, share * i, share / 2) for i in range(1, groups)]
    return [0, *inner, len(keys)]


def _border(keys: Sequence[bytes], ideal: float, tolerance: float) -> int:
    """Return the position within `tolerance` of `ideal` whose two neighbours share least."""
    first, last = max(1, round(ideal - tolerance)), min(len(keys), round(ideal + tolerance) + 1)
    return min(
        range(first, last),
        key=lambda i: (_shared(keys[i - 1], keys[i]) // PREFIX_STEP_BYTES, abs(i - ideal)),
        default=round(ideal),
    )


def _shared(one: bytes, other: bytes) -> int:
    """Return the length of the common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
