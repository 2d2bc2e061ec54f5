"""Index of the KV blocks that the workers' KV events confirm."""

from collections import deque
from collections.abc import Mapping, Sequence

from hpc_dynamo.router.index.block_owners import BlockOwners, PrefixDepths, TargetKey, WorkerBits
from hpc_dynamo.router.index.hashes import TOKEN_BYTES, chained_hashes
from hpc_dynamo.router.index.lower_tiers import LowerTierOwners, TierCounts
from hpc_dynamo.router.index.worker_blocks import (
    PAGE,
    BlockKey,
    ChainEnd,
    KeyTable,
    Page,
    WorkerBlocks,
    pack_uint64,
    to_short_key,
    to_short_keys,
)


class PrefixIndex:
    """Exact index of cached blocks, also of blocks that follow an evicted one.

    A dictionary maps the hash of a block to its owners, the bits of one integer. A second one maps
    the last hash of PAGE consecutive blocks to the workers that stored them together. A long prompt
    therefore takes one look-up per page. Single blocks are looked up only if workers differ.

    `capacity` limits the number of copies: a block of two workers counts twice, and blocks of
    removed workers count until they are swept. Blocks beyond it are not indexed. The index may miss
    blocks, but it never reports blocks that a worker does not have. A block of one worker takes 155
    to 175 bytes, each other copy 97 (benchmarks/results/router.md).

    Two prefixes may share a hash (60 bits; among 50 million blocks, one chance in 900). The router
    then expects too much of a worker until the engine evicts that block. It costs time but not
    correctness, because engines compare the prompts themselves.
    """

    def __init__(self, capacity: int, block_tokens: int) -> None:
        self._capacity, self._block_tokens = capacity, block_tokens
        self._owners, self._page_owners = BlockOwners(1024), BlockOwners(8)
        self._lower_tiers = LowerTierOwners()
        self._bits, self._workers = WorkerBits(), dict[TargetKey, WorkerBlocks]()
        self._ended = deque[WorkerBlocks]()  # with blocks to sweep
        self._copies = 0
        # Engine blocks that were not indexed, by reason.
        self.orphans = 0  # unknown parent block
        self.unfit = 0  # size not a multiple of block_tokens, token count wrong, or duplicate keys
        self.full = 0  # beyond the capacity

    def __len__(self) -> int:
        """Return the number of distinct blocks, unswept ones of removed workers included."""
        return len(self._owners)

    def add_worker(self, rank: TargetKey) -> None:
        """Add a worker with an empty cache; blocks indexed earlier for this rank are dropped."""
        self.remove_worker(rank)
        self._workers[rank] = WorkerBlocks(self._bits.allocate(rank))

    def remove_worker(self, rank: TargetKey) -> None:
        """Remove a worker in constant time. Its memory is freed step by step, see `sweep`."""
        worker = self._workers.pop(rank, None)
        if worker:
            worker.end()
            self._bits.retire(worker.bit)
            self._ended.append(worker)

    def clear(self, rank: TargetKey) -> None:
        """Drop all blocks of a worker that cleared its cache."""
        if rank in self._workers:
            self.add_worker(rank)

    def reset(self, rank: TargetKey) -> None:
        """Drop all blocks of a worker whose events were lost: they are unreliable."""
        self.clear(rank)

    def store(
        self,
        rank: TargetKey,
        keys: Sequence[BlockKey],
        parent: BlockKey | None,
        tokens: bytes,
        block_tokens: int,
        medium: str = "GPU",
        root: int = 0,
    ) -> None:
        """Add blocks of `block_tokens` each that follow `parent`, or start a prompt if it is None.

        `tokens` are their ids as concatenated uint32; `root` seeds the first hash of a prompt, see
        hashes.adapter_root. Keys that are known on this medium are not counted twice.
        """
        worker = self._workers.get(rank)
        if worker is None:
            return
        if block_tokens == self._block_tokens and self._append_response_block(
            worker, keys, parent, tokens, medium
        ):
            return
        short_keys = to_short_keys(keys)
        ratio, odd = divmod(block_tokens, self._block_tokens)
        fits = len(tokens) == len(short_keys) * block_tokens * TOKEN_BYTES
        if odd or ratio < 1 or not fits or len(set(short_keys)) < len(short_keys):
            self.unfit += len(short_keys)
            return
        table = worker.table(medium)
        end: ChainEnd | None = ChainEnd(parent_hash=root)
        if parent is not None:
            end = worker.chain_end(to_short_key(parent), table)
        if end is None:
            self.orphans += len(short_keys)
            return
        known = table.known(short_keys)
        if len(known) == len(short_keys):
            return
        if not self._make_room(ratio * (len(short_keys) - len(known))):
            self.full += len(short_keys)
            return
        self._forget(worker, table, known)
        hashes = chained_hashes(tokens, self._block_tokens, end.parent_hash)
        self._add_pages(worker, table, end, short_keys, hashes)

    def _append_response_block(
        self,
        worker: WorkerBlocks,
        keys: Sequence[BlockKey],
        parent: BlockKey | None,
        tokens: bytes,
        medium: str,
    ) -> bool:
        """Append one block of a response, the most frequent event, without the general steps.

        Return False, without changes, for any other event.
        """
        if len(keys) != 1 or parent is None or len(tokens) != self._block_tokens * TOKEN_BYTES:
            return False
        table = worker.table(medium)
        key, parent_key = to_short_key(keys[0]), to_short_key(parent)
        page = table.find(parent_key)
        if page is None or not page.accepts_after(parent_key) or table.find(key):
            return False
        if self._ended or self._copies >= self._capacity:
            return False
        blocks = chained_hashes(tokens, self._block_tokens, page.last)
        self._append_to_page(worker, table, page, [key], blocks)
        self._add_copies(worker, table, blocks)
        return True

    def _append_to_page(
        self,
        worker: WorkerBlocks,
        table: KeyTable,
        page: Page,
        short_keys: list[int],
        hashes: Sequence[int],
    ) -> None:
        page.extend(pack_uint64(short_keys), pack_uint64(hashes))
        table.put(short_keys, page)
        if page.complete:
            self._page_owners.add((page.last,), worker.bit)

    def _make_room(self, copies: int) -> bool:
        """Sweep blocks of removed workers; return True if `copies` more may be added."""
        while self._ended and self.sweep(2 * copies) and self._copies + copies > self._capacity:
            pass
        return self._copies + copies <= self._capacity

    def _add_pages(
        self,
        worker: WorkerBlocks,
        table: KeyTable,
        end: ChainEnd,
        short_keys: list[int],
        hashes: list[int],
    ) -> None:
        """Add new blocks to pages."""
        ratio = len(hashes) // len(short_keys)
        page, depth, done = end.page, end.depth, 0
        if page and (page.blocks_per_key != ratio or not depth % PAGE):
            page = None
        while done < len(short_keys):
            upto = min(done + max(1, (PAGE - depth % PAGE) // ratio), len(short_keys))
            page = page or Page(depth, ratio)
            part = hashes[done * ratio : upto * ratio]
            self._append_to_page(worker, table, page, short_keys[done:upto], part)
            page, depth, done = None, depth + len(part), upto
        self._add_copies(worker, table, hashes)

    def _add_copies(self, worker: WorkerBlocks, table: KeyTable, blocks: Sequence[int]) -> None:
        worker.add_copies(self._owners.add(blocks, worker.bit))
        self._copies += len(blocks)
        if worker.has_lower_tiers:
            worker.count_copies(table.tier, blocks, 1)
            self._lower_tiers.update(worker, blocks)

    def remove(self, rank: TargetKey, keys: Sequence[BlockKey], medium: str = "GPU") -> list[int]:
        """Remove blocks from this medium; unknown blocks are ignored.

        Return the hashes of blocks that the worker has on no other medium.
        """
        worker = self._workers.get(rank)
        return self._forget(worker, worker.table(medium), to_short_keys(keys)) if worker else []

    def _forget(self, worker: WorkerBlocks, table: KeyTable, short_keys: list[int]) -> list[int]:
        removed = list[int]()
        for key in short_keys:
            page = table.pop(key)
            if page is None:
                continue
            if page.complete:
                self._page_owners.discard((page.last,), worker.bit)
            blocks = page.remove_key(key)
            self._copies -= len(blocks)
            last = worker.remove_copies(blocks)
            self._owners.discard(last, worker.bit)
            if worker.has_lower_tiers:
                worker.count_copies(table.tier, blocks, -1)
                self._lower_tiers.update(worker, blocks)
            removed += last
        return removed

    def sweep(self, blocks: int) -> bool:
        """Free about this many blocks of removed workers; return True if more remain.

        `store` calls it for a few blocks at a time, so that it never blocks the event loop.
        """
        while self._ended and blocks > 0:
            worker = self._ended[0]
            page = worker.pop_page()
            if page is None:
                self._bits.free(worker.bit)
                self._ended.popleft()
                continue
            blocks -= self._sweep_page(page, worker.bit)
        return bool(self._ended)

    def _sweep_page(self, page: Page, bit: int) -> int:
        """Free a page when its first key is swept; return the number of blocks processed."""
        self._copies -= page.blocks_per_key
        if page.swept:
            return 1
        page.swept = True
        self._owners.discard(page.blocks, bit)
        if self._lower_tiers:
            self._lower_tiers.discard(page.blocks, bit)
        self._page_owners.discard((page.last,), bit)
        return len(page.blocks)

    def overlaps(self, hashes: Sequence[int]) -> dict[TargetKey, int]:
        """Return rank -> number of blocks cached from the start without a gap, if above 0."""
        count, left = len(hashes), PrefixDepths()
        owners = self._bits.live & self._owners.get(hashes[0]) if count else 0
        for start in range(0, count, PAGE):
            if not owners:
                break
            end = start + PAGE
            whole = self._page_owners.get(hashes[end - 1]) if end <= count else 0
            if owners & ~whole:
                owners = self._owners.match_prefix(hashes[start:end], owners, whole, left, start)
        left.append((owners, count))
        return self._bits.depths(left)

    def lower_tier_blocks(
        self, hashes: Sequence[int], cached: Mapping[TargetKey, int]
    ) -> TierCounts:
        """Return how many of the first `cached` blocks are only in each lower tier of a worker."""
        return self._lower_tiers.count(hashes, cached, self._bits) if self._lower_tiers else {}
