"""Which worker has which blocks of KV cache, as the engines' events tell."""

from collections import deque
from collections.abc import Sequence

from hpc_dynamo.router.index.block_owners import BlockOwners, PrefixDepths, WorkerBits
from hpc_dynamo.router.index.hashes import TOKEN_BYTES, chained_hashes
from hpc_dynamo.router.index.worker_blocks import (
    PAGE,
    BlockKey,
    ChainEnd,
    KeyTable,
    Page,
    WorkerBlocks,
    pack_uint64,
    short_key,
    short_keys,
)


class PrefixIndex:
    """Exact: what the events say, holes in it as well.

    A block is in a dictionary by its hash, with the workers that hold it as the bits of one
    integer. PAGE blocks of a prompt that one worker stored in a row are in a second one by the
    hash of the last of them, so that a long prompt takes a look-up a page, and one a block only
    where workers part. docs/router.md has what this was measured against.

    Bounded: `capacity` counts copies (a block that two workers hold counts twice, and those of a
    worker that is gone until they are swept). Beyond it new blocks are left out: the index then
    knows less than there is, never more, and the starts of prompts, which came first, stay.
    155 to 175 bytes a block that one worker holds, 97 for each further copy (benchmarks.router).

    Equal hashes of different prefixes (60 bits: among 50 million blocks one chance in 900 that
    there are any) make the router expect more than a worker has. That costs the time to compute
    it and no correctness, since engines compare for themselves, and it ends when the
    engine removes that block: blocks are removed by the engine's keys, not by hashes.
    """

    def __init__(self, capacity: int, block_tokens: int) -> None:
        self._capacity, self._block = capacity, block_tokens
        self._owners, self._page_owners = BlockOwners(1024), BlockOwners(8)
        self._bits, self._workers = WorkerBits(), dict[int, WorkerBlocks]()  # by rank
        self._ended = deque[WorkerBlocks]()  # with blocks that are not swept yet
        self._copies = 0
        # Engine blocks that were left out, and why.
        self.orphans = 0  # nothing is known of the block before
        self.unfit = 0  # not of a multiple of our size, or with too few tokens, or twice the same
        self.full = 0

    def __len__(self) -> int:
        """Distinct blocks, those of ended lives until they are swept."""
        return len(self._owners)

    # Workers.

    def add_worker(self, rank: int) -> None:
        """A worker with an empty cache: nothing of a former life is believed of the new one."""
        self.remove_worker(rank)
        self._workers[rank] = WorkerBlocks(self._bits.allocate(rank))

    def remove_worker(self, rank: int) -> None:
        """At once, whatever it held; its memory is freed bit by bit, see `tidy`."""
        life = self._workers.pop(rank, None)
        if life:
            life.end()
            self._bits.retire(life.bit)
            self._ended.append(life)

    def clear(self, rank: int) -> None:
        """Its cache is empty."""
        if rank in self._workers:
            self.add_worker(rank)

    reset = clear  # what is known of it is doubtful: events were lost

    # What engines tell.

    def store(
        self,
        rank: int,
        keys: Sequence[BlockKey],
        parent: BlockKey | None,
        tokens: bytes,
        block_tokens: int,
        medium: str = "GPU",
        root: int = 0,
    ) -> None:
        """Blocks of `block_tokens` each that follow the block `parent`, or start a prompt.

        `tokens` are their uint32 ids, concatenated; `root` is what a prompt's start follows, see
        hashes.root. What is known already, under the same key and on this medium, is not counted
        twice.
        """
        life = self._workers.get(rank)
        if life is None:
            return
        if block_tokens == self._block and self._append_block(life, keys, parent, tokens, medium):
            return
        names = short_keys(keys)
        ratio, odd = divmod(block_tokens, self._block)
        fits = len(tokens) == len(names) * block_tokens * TOKEN_BYTES
        if odd or ratio < 1 or not fits or len(set(names)) < len(names):
            self.unfit += len(names)
            return
        table = life.table(medium)
        spot = (
            ChainEnd(parent_hash=root)
            if parent is None
            else life.chain_end(short_key(parent), table)
        )
        if spot is None:
            self.orphans += len(names)
            return
        known = table.known(names)
        if len(known) == len(names):
            return
        if not self._make_room(ratio * (len(names) - len(known))):
            self.full += len(names)
            return
        self._forget(life, table, known)
        self._extend(
            life, table, spot, names, chained_hashes(tokens, self._block, spot.parent_hash)
        )

    def _append_block(
        self,
        life: WorkerBlocks,
        keys: Sequence[BlockKey],
        parent: BlockKey | None,
        tokens: bytes,
        medium: str,
    ) -> bool:
        """The short way of what comes the most often, one more block of an answer. False, and
        nothing done, for anything else."""
        if len(keys) != 1 or parent is None or len(tokens) != self._block * TOKEN_BYTES:
            return False
        table, name, above = life.table(medium), short_key(keys[0]), short_key(parent)
        page = table.find(above)
        if page is None or not page.accepts_after(above) or table.find(name):
            return False
        if self._ended or self._copies >= self._capacity:
            return False
        blocks = chained_hashes(tokens, self._block, page.last)
        self._append(life, table, page, [name], blocks)
        life.add_copies(self._owners.add(blocks, life.bit))
        self._copies += 1
        return True

    def _append(
        self,
        life: WorkerBlocks,
        table: KeyTable,
        page: Page,
        names: list[int],
        hashes: Sequence[int],
    ) -> None:
        page.extend(pack_uint64(names), pack_uint64(hashes))
        table.put(names, page)
        if page.complete:
            self._page_owners.add((page.last,), life.bit)

    def _make_room(self, copies: int) -> bool:
        """Whether so many more may be entered."""
        # Memory of the dead goes as fast as that of the living comes, and sooner where it must.
        while self._ended and self.sweep(2 * copies) and self._copies + copies > self._capacity:
            pass
        return self._copies + copies <= self._capacity

    def _extend(
        self,
        life: WorkerBlocks,
        table: KeyTable,
        spot: ChainEnd,
        names: list[int],
        hashes: list[int],
    ) -> None:
        """Enter new blocks, in pages."""
        ratio = len(hashes) // len(names)
        page, depth, done = spot.page, spot.depth, 0
        if page and (page.blocks_per_key != ratio or not depth % PAGE):
            page = None
        while done < len(names):
            upto = min(done + max(1, (PAGE - depth % PAGE) // ratio), len(names))
            page = page or Page(depth, ratio)
            some = hashes[done * ratio : upto * ratio]
            self._append(life, table, page, names[done:upto], some)
            page, depth, done = None, depth + len(some), upto
        life.add_copies(self._owners.add(hashes, life.bit))
        self._copies += len(hashes)

    def remove(self, rank: int, keys: Sequence[BlockKey], medium: str = "GPU") -> list[int]:
        """Remove blocks from this medium; unknown blocks are ignored.

        Returns the hashes of those that the worker has on no other medium either.
        """
        life = self._workers.get(rank)
        return self._forget(life, life.table(medium), short_keys(keys)) if life else []

    def _forget(self, life: WorkerBlocks, table: KeyTable, names: list[int]) -> list[int]:
        gone = list[int]()
        for name in names:
            page = table.pop(name)
            if page is None:
                continue
            if page.complete:
                self._page_owners.discard((page.last,), life.bit)
            blocks = page.remove_key(name)
            self._copies -= len(blocks)
            last = life.remove_copies(blocks)
            self._owners.discard(last, life.bit)
            gone += last
        return gone

    def sweep(self, blocks: int) -> bool:
        """Sweep up to about this many blocks of ended lives; whether there are more. Stores do
        it as they go."""
        while self._ended and blocks > 0:
            life = self._ended[0]
            page = life.pop_page()
            if page is None:
                self._bits.free(life.bit)
                self._ended.popleft()
                continue
            blocks -= self._sweep_page(page, life.bit)
        return bool(self._ended)

    def _sweep_page(self, page: Page, bit: int) -> int:
        """For one of the page's keys; how much work it was."""
        self._copies -= page.blocks_per_key
        if page.swept:
            return 1
        page.swept = True
        self._owners.discard(page.blocks, bit)
        self._page_owners.discard((page.last,), bit)
        return len(page.blocks)

    # What the router asks.

    def overlaps(self, hashes: Sequence[int]) -> dict[int, int]:
        """For each worker that has any: how many blocks from the start it has without a gap."""
        count, left = len(hashes), PrefixDepths()
        alive = self._bits.live & self._owners.get(hashes[0]) if count else 0
        for start in range(0, count, PAGE):
            if not alive:
                break
            end = start + PAGE
            whole = self._page_owners.get(hashes[end - 1]) if end <= count else 0
            if alive & ~whole:
                alive = self._owners.match_prefix(hashes[start:end], alive, whole, left, start)
        left.append((alive, count))
        return self._bits.depths(left)
