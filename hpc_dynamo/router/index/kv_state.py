"""KV blocks cached on each worker: confirmed by events, or expected from routing decisions."""

import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import mul
from typing import Any

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
from hpc_dynamo.router.index.attention_group import AttentionGroup
from hpc_dynamo.router.index.block_owners import TargetKey
from hpc_dynamo.router.index.event_stream import EventStream
from hpc_dynamo.router.index.exact import PrefixIndex
from hpc_dynamo.router.index.hashes import adapter_root
from hpc_dynamo.router.index.tiers import is_shared

NOTHING_TO_LOAD: Mapping[TargetKey, float] = {}
PENDING_S = 5.0  # maximum time from a decision to the event that confirms it

log = logging.getLogger(__name__)


class KvState:
    """Blocks that each worker has, or is expected to have, in its KV cache.

    `confirmed` holds the blocks of KV events. A prompt that was just sent to a worker is expected
    there before its events arrive. It stays in `pending` for PENDING_S if the worker publishes
    events, else in `approximate` for `router.approximate_ttl_s`. Blocks after an image or another
    medium are also kept there, because no event confirms them. Events override expectations:
    - The first event of a worker ends its approximate blocks.
    - An eviction ends the expectation of the evicted blocks.
    - A cleared cache, an engine restart or lost events end all expectations of the worker.
    """

    def __init__(self, config: c.Router, clock: Callable[[], float] = time.monotonic) -> None:
        block, capacity = config.block_tokens, config.index_capacity_blocks
        self._clock, self._block_tokens, self._tier_cost = clock, block, config.tier_cost
        self.confirmed = PrefixIndex(capacity, block)
        self.pending = ApproximateIndex(capacity, PENDING_S, clock)
        self.approximate = ApproximateIndex(capacity, config.approximate_ttl_s, clock)
        self._streams = dict[TargetKey, EventStream]()
        self._groups = dict[TargetKey, AttentionGroup]()
        # (time, prompt, confirmable blocks), for workers that have not published an event.
        self._recent_prompts = dict[TargetKey, deque[tuple[float, Sequence[int], int]]]()
        self._caches = dict[TargetKey, int]()  # number of caches, if several
        self._former_gaps = self._former_resyncs = 0  # counts of removed workers
        self.batches = self.unreadable_batches = 0
        self.lag_s = 0.0  # delay of the last batch of events

    def add_worker(self, rank: TargetKey, caches: int = 1) -> None:
        """Add a worker, or a data-parallel rank of it, whose cache is assumed to be empty.

        With several `caches` the engine selects one for each request. What the worker has is then
        found in one request of that many.
        """
        self.remove_worker(rank)
        if caches > 1:
            self._caches[rank] = caches
        self.forget(rank)
        self._streams[rank] = EventStream(partial(self._apply, rank), partial(self.forget, rank))
        self._groups[rank] = AttentionGroup()
        self._recent_prompts[rank] = deque()

    def remove_worker(self, rank: TargetKey) -> None:
        """Drop a worker and its blocks; its counts stay."""
        for index in (self.confirmed, self.pending, self.approximate):
            index.remove_worker(rank)
        self._recent_prompts.pop(rank, None)
        self._caches.pop(rank, None)
        self._groups.pop(rank, None)
        stream = self._streams.pop(rank, None)
        if stream:
            self._former_gaps += stream.gaps
            self._former_resyncs += stream.resyncs

    def forget(self, rank: TargetKey) -> None:
        """Drop all confirmed and expected blocks of a worker, whose cache is empty."""
        for index in (self.confirmed, self.pending, self.approximate):
            index.add_worker(rank)

    def receive_events(self, rank: TargetKey, seq: int, payload: bytes) -> int | None:
        """Process a batch of events. Return the number to replay from, or None."""
        stream = self._streams.get(rank)
        if stream is None:
            return None
        if not stream.started and seq != REPLAY_END:
            self._first_event(rank)
        return stream.receive(seq, payload)

    def _first_event(self, rank: TargetKey) -> None:
        """Keep only the prompts that the worker may not have computed yet as expected."""
        self.approximate.add_worker(rank)
        sent, since = self._recent_prompts.get(rank, deque()), self._clock() - PENDING_S
        for at, hashes, confirmable in sent:
            if at > since:
                self._expect_events(rank, hashes, confirmable)
        sent.clear()

    def expect(self, rank: TargetKey, hashes: Sequence[int], confirmable: int = -1) -> None:
        """Expect the blocks of a prompt that was sent to the worker.

        KV events confirm only the first `confirmable` blocks; -1: all.
        """
        stream = self._streams.get(rank)
        if stream and stream.started:
            self._expect_events(rank, hashes, confirmable)
            return
        self.approximate.add(rank, hashes)
        if (sent := self._recent_prompts.get(rank)) is not None:
            now = self._clock()
            sent.append((now, hashes, confirmable))
            while sent[0][0] < now - PENDING_S:
                sent.popleft()

    def _expect_events(self, rank: TargetKey, hashes: Sequence[int], confirmable: int) -> None:
        """Expect the blocks of a prompt on a worker that publishes events."""
        if 0 <= confirmable < len(hashes):
            self.approximate.add(rank, hashes)
            hashes = hashes[:confirmable]
        self.pending.add(rank, hashes)

    def overlaps(self, hashes: Sequence[int]) -> dict[TargetKey, int]:
        """Return rank -> number of blocks from the start, confirmed or expected, if above 0."""
        cached = self.confirmed.overlaps(hashes)
        for index in (self.pending, self.approximate):
            for rank, blocks in index.overlaps(hashes).items():
                if blocks > cached.get(rank, 0):
                    cached[rank] = blocks
        for rank in self._caches.keys() & cached.keys():
            if share := cached[rank] // self._caches[rank]:
                cached[rank] = share
            else:
                del cached[rank]
        return cached

    def load_tokens(
        self, hashes: Sequence[int], cached: Mapping[TargetKey, int]
    ) -> Mapping[TargetKey, float]:
        """Return the cost of the `cached` blocks that are only in lower tiers, in prompt tokens.

        A prompt that was just sent to a worker is expected on its device.
        """
        found = self.confirmed.lower_tier_blocks(hashes, cached)
        if not found:
            return NOTHING_TO_LOAD
        for index in (self.pending, self.approximate):
            for rank, blocks in index.overlaps(hashes).items():
                if blocks >= cached.get(rank, 0):
                    found.pop(rank, None)
        costs = self._tier_cost.host, self._tier_cost.disk
        return {
            rank: self._block_tokens * sum(map(mul, costs, blocks))
            for rank, blocks in found.items()
        }

    @property
    def gaps(self) -> int:
        return self._former_gaps + sum(stream.gaps for stream in self._streams.values())

    @property
    def resyncs(self) -> int:
        return self._former_resyncs + sum(stream.resyncs for stream in self._streams.values())

    def _apply(self, rank: TargetKey, payload: bytes) -> None:
        try:
            batch = decode_events(payload)
        except WireError as e:
            self.unreadable_batches += 1
            log.warning("worker %s: %s", rank, e)
            return
        self.batches += 1
        self.lag_s = max(0.0, time.time() - batch.ts)
        for event in batch.events:
            match event:
                case AllBlocksCleared():
                    self.forget(rank)
                case BlockStored() if not is_shared(event.medium, event.locality):
                    self._store(rank, event)
                case BlockRemoved() if not is_shared(event.medium, event.locality):
                    self._remove(rank, event)

    def _store(self, rank: TargetKey, event: BlockStored) -> None:
        group = self._groups[rank]
        if group.learn(event):
            self.confirmed.add_worker(rank)
        if not group.includes(event.group_idx):
            return
        blocks, tokens = _plain_blocks(event)
        if not blocks:
            return
        self.confirmed.store(
            rank,
            event.block_hashes[:blocks],
            event.parent_block_hash,
            tokens,
            event.block_size,
            event.medium or "",
            adapter_root(event.lora_name),
        )

    def _remove(self, rank: TargetKey, event: BlockRemoved) -> None:
        if self._groups[rank].includes(event.group_idx):
            removed = self.confirmed.remove(rank, event.block_hashes, event.medium or "")
            self.pending.discard(rank, removed)
            self.approximate.discard(rank, removed)


def _plain_blocks(event: BlockStored) -> tuple[int, bytes]:
    """Return the number of blocks, from the first, that depend only on tokens and adapter, and
    their tokens.

    Salts and media change a block, but not the hashes used here. SGLang 0.5.23 puts ids made from
    a medium's digest in the place of its tokens. They have up to 62 bits. Those of TensorRT-LLM are
    texts.
    """
    if event.cache_salt is not None:
        return 0, b""
    known, blocks, ids = [event.lora_name], len(event.block_hashes), event.token_ids
    changed = (i for i, keys in enumerate(event.extra_keys or ()) if keys and keys != known)
    if (plain := next(changed, blocks)) < blocks:
        blocks, ids = plain, ids[: plain * event.block_size]
    try:
        return blocks, _packed(ids)
    except (OverflowError, TypeError):
        first = next(i for i, token in enumerate(ids) if not _is_token(token))
        blocks = first // max(event.block_size, 1)
        return blocks, _packed(ids[: blocks * event.block_size])


def _packed(ids: list[Any]) -> bytes:
    """Raises OverflowError or TypeError for values that are not ids of tokens."""
    return array("I", ids).tobytes()


def _is_token(token: object) -> bool:
    return isinstance(token, int) and 0 <= token < 1 << 32
