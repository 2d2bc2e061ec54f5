"""Order in which a batch is sent, so that requests with a shared prefix reach one cache.

The prompts of a window are sorted: each is next to the one it shares most with. The sorted list is
cut into one run of neighbours for each worker that computes prompts. Requests are taken from the
runs in turn. The router sends a request to the worker that has most of its prefix, so each worker
processes one run and computes a shared prefix once. While few workers are ready, few runs are open.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise

from hpc_dynamo.batch.input_file import RequestEntry, RequestReader
from hpc_dynamo.json_reader import Fields

WINDOW_REQUESTS, WINDOW_BYTES = 8192, 64 << 20  # sorted at a time, at most
POLL_INTERVAL_S = 0.1  # interval between checks for workers that have become ready
STEP_BYTES = 64  # shared prefixes that differ by less are alike: a few KV blocks of English


@dataclass(eq=False)
class PrefixGroup:
    """Neighbours in the sorted order of a window."""

    left: deque[RequestEntry]
    running: int = 0  # requests that were taken and have no result yet


@dataclass(frozen=True, slots=True)
class DispatchedEntry:
    """One request to send. `PrefixOrder.done` must be called when it has a result."""

    entry: RequestEntry
    group: PrefixGroup


class PrefixOrder:
    """Hands out the entries of a batch, each once, a window of the file at a time.

    While workers are missing, at the start or after a failure, no more runs are open than workers
    are ready, so that workers that become ready later get runs of their own.

    Args:
        entries: in the order of the input.
        workers: workers that compute prompts; 0 keeps the order of the input.
        ready: returns how many of these workers are ready now.
    """

    def __init__(
        self,
        entries: Sequence[RequestEntry],
        reader: RequestReader,
        workers: int,
        ready: Callable[[], int],
    ) -> None:
        self._entries, self._reader = entries, reader
        self._workers, self._ready = workers, ready
        self._seen = 0  # entries that were in a window
        self._waiting = deque[PrefixGroup]()  # of the window, not begun
        self._begun = deque[PrefixGroup]()  # requests are taken from them in turn
        self._ending = 0  # runs with all requests taken and some results missing
        self._lock, self._news = asyncio.Lock(), asyncio.Event()

    async def take(self) -> DispatchedEntry | None:
        """Return the next request, None after the last. Waits while each ready worker has a run."""
        async with self._lock:
            while True:
                self._begin_runs()
                if self._begun:
                    return self._pop()
                if not self._waiting and not await self._read_window():
                    return None
                if self._full:
                    await self._look_again()

    def done(self, taken: DispatchedEntry) -> None:
        """Record that the request has a result."""
        taken.group.running -= 1
        if not taken.group.running and not taken.group.left:
            self._ending -= 1
            self._news.set()

    @property
    def _full(self) -> bool:
        """Return True if workers are missing and each ready one has a run."""
        ready = self._ready()
        return ready < self._workers and len(self._begun) + self._ending >= max(ready, 1)

    def _begin_runs(self) -> None:
        while self._waiting and not self._full:
            self._begun.append(self._waiting.popleft())

    async def _look_again(self) -> None:
        """Wait until a run has ended, or LOOK_S, since a worker may have become ready."""
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL_S):
                await self._news.wait()

    def _pop(self) -> DispatchedEntry:
        run = self._begun.popleft()
        run.running += 1
        entry = run.left.popleft()
        if run.left:
            self._begun.append(run)
        else:
            self._ending += 1
        return DispatchedEntry(entry, run)

    async def _read_window(self) -> bool:
        """Sort the next window into runs, in a thread. Return False after the last window."""
        window = list(_window(self._entries, self._seen))
        self._seen += len(window)
        positions: Sequence[Sequence[int]] = [range(len(window))]
        if self._workers:
            keys = await asyncio.to_thread(self._keys, window)
            positions = prefix_groups(keys, self._workers)
        self._waiting.extend(PrefixGroup(deque(window[i] for i in run)) for run in positions if run)
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
    """Return bytes that begin alike for prompts that begin alike, tokenized or not.

    They are the JSON of the fields that the prompt is made of. The tools come first, as in chat
    templates. A list of prompts counts as its first prompt.
    """
    prompt = bytes(body.get("prompt", b"")).lstrip(b" [")
    return (
        b"\0".join(bytes(body.get(name, b"")) for name in ("model", "tools", "messages")) + prompt
    )


def prefix_groups(keys: Sequence[bytes], count: int) -> list[list[int]]:
    """Return the positions of `keys` in at most `count` runs of neighbours in their sorted order.

    The borders of the runs are near those of equal shares, and between prompts that share little.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    borders = _borders([keys[i] for i in order], count)
    return [order[begin:end] for begin, end in pairwise(borders) if begin < end]


def _borders(keys: Sequence[bytes], runs: int) -> list[int]:
    """Return where each of `runs` runs of sorted `keys` begins, and the end of the last."""
    share = len(keys) / runs
    inner = [_border(keys, share * i, share / 2) for i in range(1, runs)]
    return [0, *inner, len(keys)]


def _border(keys: Sequence[bytes], ideal: float, most: float) -> int:
    """Return the position within `most` of `ideal` whose two neighbours share least."""
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
