"""One worker's cache in the words of its engine: keys, and which of our blocks they stand for."""

from array import array
from collections.abc import Iterable, Sequence

import msgspec

BlockKey = int | bytes  # an engine's own name of a block and all before it
PAGE = 32  # blocks, that are also looked up as one
_PARTS = 16  # dictionaries of a table; a power of two
_PART = _PARTS - 1
_WORD_BYTES = 8
KEY_BITS = (1 << 56) - 1


class Page(msgspec.Struct, gc=False):
    """Blocks that follow each other, stored in this order: at most those up to the next multiple
    of PAGE from the start of the prompt; a worker's first block of a branch starts a new one.

    Plain memory that the garbage collector need not look at: there are millions of these.
    """

    start: int  # blocks before it in the prompt
    blocks_per_key: int  # blocks for each key
    keys: bytes = b""  # uint64 each
    hashes: bytes = b""  # likewise
    complete: bool = False  # PAGE blocks from a multiple of PAGE on, all there
    damaged: bool = False  # not all of it is there any more
    swept: bool = False

    @property
    def last(self) -> int:
        """The hash of the last block."""
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
        """Whether a block, one for its key, that follows this key's belongs into this page."""
        at_end = self.keys[-_WORD_BYTES:] == key.to_bytes(_WORD_BYTES, "little")
        size = len(self.hashes) // _WORD_BYTES
        return at_end and self.blocks_per_key == 1 and (self.start + size) % PAGE > 0

    def blocks_through(self, key: int) -> int:
        """How many blocks of the page there are up to this key and with its own."""
        word = key.to_bytes(_WORD_BYTES, "little")
        place = self.keys.rfind(word)
        while place % _WORD_BYTES:  # parts of two keys look like it
            place = self.keys.rfind(word, 0, place + _WORD_BYTES - 1)
        return (place // _WORD_BYTES + 1) * self.blocks_per_key

    def remove_key(self, key: int) -> Sequence[int]:
        """The blocks of one key, which is gone."""
        self.complete, self.damaged = False, True
        end = self.blocks_through(key)
        return self.blocks[end - self.blocks_per_key : end]


class ChainEnd(msgspec.Struct, gc=False):
    """Where a chain goes on."""

    depth: int = 0  # blocks before it
    parent_hash: int = 0  # hash of the last of them
    page: Page | None = None  # that ends there


class KeyTable:
    """The keys on one medium, with their pages."""

    def __init__(self) -> None:
        self.parts: tuple[dict[int, Page], ...] = tuple({} for _ in range(_PARTS))

    def find(self, key: int) -> Page | None:
        return self.parts[key & _PART].get(key)

    def known(self, keys: Sequence[int]) -> list[int]:
        partitions = self.parts
        return [key for key in keys if key in partitions[key & _PART]]

    def put(self, keys: Iterable[int], page: Page) -> None:
        parts = self.parts
        for key in keys:
            parts[key & _PART][key] = page

    def pop(self, key: int) -> Page | None:
        return self.parts[key & _PART].pop(key, None)


class WorkerBlocks:
    """A worker from its start, or from when its cache was last emptied, to its end."""

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self._tables = dict[str, KeyTable]()  # by medium
        self._extra_copies = dict[int, int]()  # copies of a block beyond the first, where there are
        self._ended_partitions = list[dict[int, Page]]()

    def table(self, medium: str) -> KeyTable:
        return self._tables.get(medium) or self._tables.setdefault(medium, KeyTable())

    def chain_end(self, key: int, table: KeyTable) -> ChainEnd | None:
        """Where the block of this key ends, looked for in its `table` first: a block in one
        medium may follow one in another."""
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
        """Further copies of blocks that are held."""
        for block in blocks:
            self._extra_copies[block] = self._extra_copies.get(block, 0) + 1

    def remove_copies(self, blocks: Iterable[int]) -> Iterable[int]:
        """A copy of each goes; of which it was the last."""
        return [b for b in blocks if self._only(b)] if self._extra_copies else blocks

    def _only(self, block: int) -> bool:
        more = self._extra_copies.get(block, 0)
        if more > 1:
            self._extra_copies[block] = more - 1
        else:
            self._extra_copies.pop(block, None)
        return not more

    def end(self) -> None:
        """Nothing is stored from now on; `pop` gives what there was."""
        self._ended_partitions = [part for table in self._tables.values() for part in table.parts]
        self._tables.clear()

    def pop_page(self) -> Page | None:
        """The page of one key more, of an ended life; None after the last."""
        while self._ended_partitions and not self._ended_partitions[-1]:
            self._ended_partitions.pop()
        return self._ended_partitions[-1].popitem()[1] if self._ended_partitions else None


def short_keys(keys: Sequence[BlockKey]) -> list[int]:
    """See `short`. Digests of one engine are of one size: all are cut in one go."""
    if len(keys) == 1:
        return [short_key(keys[0])]
    try:
        size, digests = len(keys[0]), bytearray().join(keys)  # type: ignore[arg-type]
    except (TypeError, IndexError):  # numbers, or none
        return [short_key(key) for key in keys]
    if size % _WORD_BYTES or len(digests) != len(keys) * size:
        return [short_key(key) for key in keys]
    digests[size - 1 :: size] = bytes(len(keys))
    return array("Q", digests)[size // _WORD_BYTES - 1 :: size // _WORD_BYTES].tolist()


def short_key(key: BlockKey) -> int:
    """To 56 bits: of a digest those before its last byte, which are as good as any. Ints of up to
    60 bits take less memory; 56 are enough to tell the blocks of one worker apart."""
    number = key if isinstance(key, int) else int.from_bytes(key[-_WORD_BYTES:], "little")
    return number & KEY_BITS


def pack_uint64(numbers: Sequence[int]) -> bytes:
    """uint64 each."""
    if len(numbers) == 1:
        return numbers[0].to_bytes(_WORD_BYTES, "little")
    return array("Q", numbers).tobytes()
