"""What is cached where: as engines tell it, and as our own decisions let expect it."""

import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from hpc_dynamo import config as c
from hpc_dynamo.errors import WireError
from hpc_dynamo.kv.events import (
    REPLAY_END,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    decode_events,
)
from hpc_dynamo.router.index.approximate import ApproximateIndex
from hpc_dynamo.router.index.event_stream import EventStream
from hpc_dynamo.router.index.exact import PrefixIndex
from hpc_dynamo.router.index.hashes import adapter_root

PENDING_S = 5.0  # from a decision to the event that confirms it, at the most

log = logging.getLogger(__name__)


class KvState:
    """Blocks that each worker has in its KV cache, or is expected to have.

    `told` holds blocks confirmed by events. A prompt just sent to a worker is expected to be
    cached there before its events arrive: for SOON_S (`soon`) if the worker publishes events, for
    `router.approximate_ttl_s` (`guessed`) if it never has. Events override such guesses: the first
    event of a worker ends its long-lived ones, an eviction ends those of the evicted blocks, and a
    cleared cache, a restarted engine or a lost event ends all of that worker.
    """

    def __init__(self, config: c.Router, clock: Callable[[], float] = time.monotonic) -> None:
        block, capacity = config.block_tokens, config.index_capacity_blocks
        self._clock = clock
        self.confirmed = PrefixIndex(capacity, block)
        self.pending = ApproximateIndex(capacity, PENDING_S, clock)
        self.approximate = ApproximateIndex(capacity, config.approximate_ttl_s, clock)
        self._streams = dict[int, EventStream]()  # by rank
        # Prompts and times, for workers that have published nothing yet.
        self._recent_prompts = dict[int, deque[tuple[float, Sequence[int]]]]()
        self._former_gaps = self._former_resyncs = 0  # of workers that are gone
        self.batches = self.unreadable_batches = 0
        self.lag_s = 0.0  # from an engine to here, of the last batch

    def add_worker(self, rank: int) -> None:
        """A worker whose cache is empty, as far as we know."""
        self.remove_worker(rank)
        self._forget(rank)
        self._streams[rank] = EventStream(partial(self._apply, rank), partial(self._forget, rank))
        self._recent_prompts[rank] = deque()

    def remove_worker(self, rank: int) -> None:
        for index in (self.confirmed, self.pending, self.approximate):
            index.remove_worker(rank)
        self._recent_prompts.pop(rank, None)
        feed = self._streams.pop(rank, None)
        if feed:
            self._former_gaps += feed.gaps
            self._former_resyncs += feed.resyncs

    def _forget(self, rank: int) -> None:
        """Remove all known and expected blocks of a worker."""
        for index in (self.confirmed, self.pending, self.approximate):
            index.add_worker(rank)

    def receive_events(self, rank: int, seq: int, payload: bytes) -> int | None:
        """A batch of a worker's events. Returns from where they must be asked for again."""
        feed = self._streams.get(rank)
        if feed is None:
            return None
        if not feed.started and seq != REPLAY_END:
            self._first_event(rank)
        return feed.receive(seq, payload)

    def _first_event(self, rank: int) -> None:
        """Handle a worker's first event: only prompts that it may not have computed yet are still
        expected."""
        self.approximate.add_worker(rank)
        sent, since = self._recent_prompts.get(rank, deque()), self._clock() - PENDING_S
        for at, hashes in sent:
            if at > since:
                self.pending.add(rank, hashes)
        sent.clear()

    def expect(self, rank: int, hashes: Sequence[int]) -> None:
        """The worker was sent a prompt of these blocks."""
        feed = self._streams.get(rank)
        if feed and feed.started:
            self.pending.add(rank, hashes)
            return
        self.approximate.add(rank, hashes)
        if (sent := self._recent_prompts.get(rank)) is not None:
            now = self._clock()
            sent.append((now, hashes))
            while sent[0][0] < now - PENDING_S:
                sent.popleft()

    def overlaps(self, hashes: Sequence[int]) -> dict[int, int]:
        """For each worker that has any: how many blocks from the start it has, or will have."""
        found = self.confirmed.overlaps(hashes)
        for index in (self.pending, self.approximate):
            for rank, blocks in index.overlaps(hashes).items():
                if blocks > found.get(rank, 0):
                    found[rank] = blocks
        return found

    @property
    def gaps(self) -> int:
        return self._former_gaps + sum(feed.gaps for feed in self._streams.values())

    @property
    def resyncs(self) -> int:
        return self._former_resyncs + sum(feed.resyncs for feed in self._streams.values())

    def _apply(self, rank: int, payload: bytes) -> None:
        try:
            batch = decode_events(payload)
        except WireError as e:
            self.unreadable_batches += 1
            log.warning("worker %d: %s", rank, e)
            return
        self.batches += 1
        self.lag_s = max(0.0, time.time() - batch.ts)
        for event in batch.events:
            match event:
                case BlockStored() if _depends_on_tokens_only(event):
                    self._store(rank, event)
                case BlockRemoved(group_idx=None | 0, block_hashes=keys, medium=medium):
                    self.pending.discard(rank, self.confirmed.remove(rank, keys, medium or ""))
                case AllBlocksCleared():
                    self._forget(rank)

    def _store(self, rank: int, event: BlockStored) -> None:
        self.confirmed.store(
            rank,
            event.block_hashes,
            event.parent_block_hash,
            array("I", event.token_ids).tobytes(),
            event.block_size,
            event.medium or "",
            adapter_root(event.lora_name),
        )


def _depends_on_tokens_only(event: BlockStored) -> bool:
    """Salts, images and the like make a block another one, of which our hashes know nothing but
    the adapter's name. Of a model whose layers have several caches the first speaks for all."""
    known = [event.lora_name]
    others = (keys for keys in event.extra_keys or () if keys and keys != known)
    return event.group_idx in (None, 0) and not any(others)
