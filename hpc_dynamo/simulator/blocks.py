"""The paged KV cache: ownership of blocks, the prefix cache and the bytes.

`BlockPool` does the bookkeeping: reference counts, a prefix cache by chained hash, and eviction
of the block that has been free for longest. `KvMemory` holds the bytes in a real buffer, so that
real transfers move them. Outputs are computed from those bytes: see `KvMemory.signatures`.
"""

import mmap
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 32


def hash_block(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the hash of a block's tokens and, through `parent`, of all tokens before them."""
    return blake2b(parent + array("I", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def hash_blocks(root: bytes, tokens: Sequence[int], size: int) -> list[bytes]:
    """Return the chained hashes of all full blocks of `size` tokens."""
    packed, step = array("I", tokens).tobytes(), size * array("I").itemsize
    hashes, parent = list[bytes](), root
    for at in range(0, len(packed) - step + 1, step):
        parent = blake2b(parent + packed[at : at + step], digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)
    return hashes


class BlockPool:
    """Reference counts of `num_blocks` blocks. Free blocks (count 0) may stay cached.

    `on_evict`, if set, is called with the hash of every block that leaves the prefix cache.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.on_evict: Callable[[bytes], None] | None = None
        self._free = OrderedDict[int, None]((i, None) for i in range(num_blocks))  # oldest first
        self._references = [0] * num_blocks
        self._hash_of = dict[int, bytes]()
        self._block_of = dict[bytes, int]()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Return the share of referenced blocks, 0 to 1."""
        return 1 - len(self._free) / self.num_blocks

    @property
    def cached_hashes(self) -> frozenset[bytes]:
        return frozenset(self._block_of)

    def find_cached(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the cached blocks of the longest known prefix. Valid until `allocate`."""
        found = list[int]()
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def allocate(self, cached: Sequence[int], new: int) -> list[int] | None:
        """Reference `cached` blocks and `new` free ones. Return None if too few are free."""
        idle = sum(1 for block in cached if not self._references[block])
        if new + idle > len(self._free):
            return None
        for block in cached:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1
        return [*cached, *(self._take_oldest() for _ in range(new))]

    def publish(self, blocks: Sequence[int], digests: Sequence[bytes]) -> list[int]:
        """Add complete blocks to the prefix cache. Of equal blocks the first one is kept.

        Return the indexes in `digests` that were not cached before.
        """
        new = list[int]()
        for i, (block, digest) in enumerate(zip(blocks, digests, strict=True)):
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._hash_of[block] = digest
                new.append(i)
        return new

    def clear(self) -> bool:
        """Empty the prefix cache. If any block is referenced, do nothing and return False."""
        if len(self._free) < self.num_blocks:
            return False
        self._block_of.clear()
        self._hash_of.clear()
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Drop references to blocks in sequence order. The last block is evicted first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)  # not cached: reused first

    def _take_oldest(self) -> int:
        block = self._free.popitem(last=False)[0]
        self._references[block] = 1
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
            if self.on_evict:
                self.on_evict(digest)
        return block


class KvMemory:
    """The bytes of all blocks, in an anonymous mapping. A page costs memory once it is written.

    Writing all bytes of every prompt would dominate the run time. A computed block is therefore
    written only before another process reads it: `flush`.
    """

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks, self.block_bytes = num_blocks, block_bytes
        self.buffer = mmap.mmap(-1, num_blocks * block_bytes)
        self._repeats = block_bytes // DIGEST_BYTES
        self._signatures = dict[int, bytes]()  # for blocks that were read or computed
        self._unwritten = set[int]()  # computed blocks whose bytes are not in the buffer yet

    def record_computed(self, blocks: Sequence[int], digests: Sequence[bytes]) -> None:
        """Set the content of computed blocks: the hash, repeated through the block."""
        self._signatures.update(zip(blocks, digests, strict=True))
        self._unwritten.update(blocks)

    def flush(self, blocks: Iterable[int]) -> None:
        """Write computed blocks into the buffer."""
        for block in self._unwritten.intersection(blocks):
            start = block * self.block_bytes
            content = self._signatures[block] * self._repeats
            self.buffer[start : start + self.block_bytes] = content
            self._unwritten.discard(block)

    def corrupt(self, block: int) -> None:
        """Change the last byte of a flushed block, as a broken link would."""
        self.buffer[(block + 1) * self.block_bytes - 1] = self._signatures[block][-1] ^ 0xFF

    def invalidate(self, blocks: Iterable[int]) -> None:
        """Forget the recorded content of blocks that a transfer has overwritten."""
        for block in blocks:
            self._signatures.pop(block, None)
            self._unwritten.discard(block)

    def signatures(self, blocks: Sequence[int]) -> list[bytes]:
        """Return what the model reads in blocks: the written hash, if every byte is right.

        Any other content has another signature, so a lost or damaged byte changes the output.
        """
        for block in blocks:
            if block not in self._signatures:
                self._signatures[block] = self._read(block)
        return [self._signatures[block] for block in blocks]

    def _read(self, block: int) -> bytes:
        start = block * self.block_bytes
        content = self.buffer[start : start + self.block_bytes]
        digest = content[:DIGEST_BYTES]
        if content == digest * self._repeats:
            return digest
        return blake2b(content, digest_size=DIGEST_BYTES).digest()
