"""The cached blocks of one worker, by the keys that its engine gives them."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from hpc_dynamo.router.index.tiers import tier_of

BlockKey = int | bytes  # identifies a block and its prefix within one engine
PAGE = 32  # blocks that one look-up covers
_PARTITIONS = 16  # dictionaries per table; a power of two
_MASK = _PARTITIONS - 1
_WORD_BYTES = 8
KEY_BITS = (1 << 56) - 1


class Page(msgspec.Struct, gc=False):
    """Consecutive blocks of a prompt, stored in this order.

    A page ends at a multiple of PAGE blocks from the start of the prompt, or earlier. The first
    block of a branch starts a new page.

    There are millions of pages, so the garbage collector does not track them (gc=False).
    """

    start: int  # blocks of the prompt before this page
    blocks_per_key: int
    keys: bytes = b""  # uint64 each
    hashes: bytes = b""  # uint64 each
    complete: bool = False  # it has all PAGE blocks and starts at a multiple of PAGE
    damaged: bool = False  # a block was removed
    swept: bool = False

    @property
    def last(self) -> int:
        """Return the hash of the last block."""
        return int.from_bytes(self.hashes[-_WORD_BYTES:], "little")

    @property
    def blocks(self) -> Sequence[int]:
        return memoryview(self.hashes).cast("Q")

    def extend(self, keys: bytes, hashes: bytes) -> None:
        self.keys += keys
        self.hashes += hashes
        full = len(self.hashes) == PAGE * _WORD_BYTES and not self.start % PAGE
        self.complete = full and not self.damaged

    def accepts_after(self, key: int) -> bool:
        """Return True if a block that follows this key belongs in this page."""
        at_end = self.keys[-_WORD_BYTES:] == key.to_bytes(_WORD_BYTES, "little")
        size = len(self.hashes) // _WORD_BYTES
        return at_end and self.blocks_per_key == 1 and (self.start + size) % PAGE > 0

    def blocks_through(self, key: int) -> int:
        """Return the number of blocks up to and including those of this key."""
        packed = key.to_bytes(_WORD_BYTES, "little")
        offset = self.keys.rfind(packed)
        # The bytes of two neighbouring keys may look like this key.
        while offset % _WORD_BYTES:
            offset = self.keys.rfind(packed, 0, offset + _WORD_BYTES - 1)
        return (offset // _WORD_BYTES + 1) * self.blocks_per_key

    def remove_key(self, key: int) -> Sequence[int]:
        """Mark one key as removed and return its blocks."""
        self.complete, self.damaged = False, True
        end = self.blocks_through(key)
        return self.blocks[end - self.blocks_per_key : end]


class ChainEnd(msgspec.Struct, gc=False):
    """The end of a stored prefix, where the next block is appended."""

    depth: int = 0  # blocks of the prefix
    parent_hash: int = 0  # hash of its last block
    page: Page | None = None  # the page that ends there


class KeyTable:
    """Pages by key, for one medium (GPU or CPU). `tier` is that of the medium; see tiers.py."""

    def __init__(self, tier: int = 0) -> None:
        self.tier = tier
        self.partitions: tuple[dict[int, Page], ...] = tuple({} for _ in range(_PARTITIONS))

    def find(self, key: int) -> Page | None:
        return self.partitions[key & _MASK].get(key)

    def known(self, keys: Sequence[int]) -> list[int]:
        partitions = self.partitions
        return [key for key in keys if key in partitions[key & _MASK]]

    def put(self, keys: Iterable[int], page: Page) -> None:
        partitions = self.partitions
        for key in keys:
            partitions[key & _MASK][key] = page

    def pop(self, key: int) -> Page | None:
        return self.partitions[key & _MASK].pop(key, None)


class WorkerBlocks:
    """Blocks of one worker, from an empty cache until it is removed or clears its cache."""

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self._tables = dict[str, KeyTable]()  # by medium
        self._extra_copies = dict[int, int]()  # number of more copies by block
        # Copies by block, for each lower tier. Empty if the worker has none.
        self._lower_copies = dict[int, Counter[int]]()
        self._ended_partitions = list[dict[int, Page]]()

    def table(self, medium: str) -> KeyTable:
        return self._tables.get(medium) or self._new_table(medium, tier_of(medium))

    def _new_table(self, medium: str, tier: int) -> KeyTable:
        if tier:
            self._lower_copies.setdefault(tier, Counter())
        return self._tables.setdefault(medium, KeyTable(tier))

    @property
    def has_lower_tiers(self) -> bool:
        return bool(self._lower_copies)

    def count_copies(self, tier: int, blocks: Iterable[int], change: int) -> None:
        """Add copies of blocks to a lower tier, or subtract them."""
        if (counts := self._lower_copies.get(tier)) is not None:
            for block in blocks:
                counts[block] += change
                if not counts[block]:
                    del counts[block]

    def fastest_tier(self, block: int) -> int:
        """Return the fastest tier with a copy; 0 if it is the device, or there is no copy."""
        lower = {tier: counts[block] for tier, counts in self._lower_copies.items()}
        in_lower = sum(lower.values())
        if not in_lower or 1 + self._extra_copies.get(block, 0) > in_lower:
            return 0
        return min(tier for tier, copies in lower.items() if copies)

    def chain_end(self, key: int, table: KeyTable) -> ChainEnd | None:
        """Return the end of the prefix with this key, None if it is unknown.

        It is looked up in `table` first; a block may follow a block on another medium.
        """
        page = table.find(key)
        if page is None:
            others = (other.find(key) for other in self._tables.values())
            page = next((found for found in others if found), None)
        if page is None:
            return None
        end, size = page.blocks_through(key), len(page.hashes) // _WORD_BYTES
        before = page.last if end == size else page.blocks[end - 1]
        return ChainEnd(page.start + end, before, page if end == size else None)

    def add_copies(self, blocks: Iterable[int]) -> None:
        """Count one more copy of blocks that the worker already has."""
        for block in blocks:
            self._extra_copies[block] = self._extra_copies.get(block, 0) + 1

    def remove_copies(self, blocks: Iterable[int]) -> Iterable[int]:
        """Remove one copy of each block; return the blocks without a copy left."""
        return [b for b in blocks if self._only(b)] if self._extra_copies else blocks

    def _only(self, block: int) -> bool:
        more = self._extra_copies.get(block, 0)
        if more > 1:
            self._extra_copies[block] = more - 1
        else:
            self._extra_copies.pop(block, None)
        return not more

    def end(self) -> None:
        """End the storing of blocks. `pop_page` then returns the pages."""
        self._ended_partitions = [
            part for table in self._tables.values() for part in table.partitions
        ]
        self._tables.clear()

    def pop_page(self) -> Page | None:
        """Return the page of one more key after `end`, or None."""
        while self._ended_partitions and not self._ended_partitions[-1]:
            self._ended_partitions.pop()
        return self._ended_partitions[-1].popitem()[1] if self._ended_partitions else None


def to_short_keys(keys: Sequence[BlockKey]) -> list[int]:
    """Return `to_short_key` of each key. Digests of equal size are shortened in one step."""
    if len(keys) == 1:
        return [to_short_key(keys[0])]
    try:
        size, digests = len(keys[0]), bytearray().join(keys)  # type: ignore[arg-type]
    except (TypeError, IndexError):  # integers, or no keys
        return [to_short_key(key) for key in keys]
    if size % _WORD_BYTES or len(digests) != len(keys) * size:
        return [to_short_key(key) for key in keys]
    digests[size - 1 :: size] = bytes(len(keys))
    return array("Q", digests)[size // _WORD_BYTES - 1 :: size // _WORD_BYTES].tolist()


def to_short_key(key: BlockKey) -> int:
    """Return 56 bits of a key; of a digest, those before its last byte.

    CPython stores integers of up to 60 bits in less memory. 56 bits distinguish the blocks of one
    worker.
    """
    number = key if isinstance(key, int) else int.from_bytes(key[-_WORD_BYTES:], "little")
    return number & KEY_BITS


def pack_uint64(numbers: Sequence[int]) -> bytes:
    """Return the numbers as uint64 each."""
    if len(numbers) == 1:
        return numbers[0].to_bytes(_WORD_BYTES, "little")
    return array("Q", numbers).tobytes()
