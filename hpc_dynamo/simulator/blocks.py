"""Pages of the KV cache: who holds which, which can be reused, what is in them.

`BlockPool` is bookkeeping: reference counts, a prefix cache by chained hash, eviction of the
block that has been free for longest. `KvMemory` is the bytes, a real buffer, so that real
transfers move them. The answer is made from those bytes: see `KvMemory.signature`.
"""

import mmap
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 32


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a block: of its tokens and, through `parent`, of all before them."""
    return blake2b(parent + array("I", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def chains(root: bytes, tokens: Sequence[int], size: int) -> list[bytes]:
    """`chain` of all full blocks of `size` tokens, one after the other."""
    packed, step = array("I", tokens).tobytes(), size * array("I").itemsize
    found, parent = list[bytes](), root
    for at in range(0, len(packed) - step + 1, step):
        parent = blake2b(parent + packed[at : at + step], digest_size=DIGEST_BYTES).digest()
        found.append(parent)
    return found


class BlockPool:
    """Reference counts of `num_blocks` blocks. A block is free at zero; it may be cached then.

    `on_evict`, where it is set, gets the hash of every block that can be found no more.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.on_evict: Callable[[bytes], None] | None = None
        self._free = OrderedDict[int, None]((i, None) for i in range(num_blocks))  # oldest first
        self._references = [0] * num_blocks
        self._hash_of = dict[int, bytes]()
        self._block_of = dict[bytes, int]()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that somebody holds, 0 to 1."""
        return 1 - len(self._free) / self.num_blocks

    @property
    def cached(self) -> frozenset[bytes]:
        """The hashes of all blocks that can be found."""
        return frozenset(self._block_of)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The cached blocks of the longest known beginning. Valid until the next allocation."""
        found = list[int]()
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def take(self, cached: Sequence[int], new: int) -> list[int] | None:
        """Hold `cached` blocks and `new` fresh ones; None if too few are free."""
        idle = sum(1 for block in cached if not self._references[block])
        if new + idle > len(self._free):
            return None
        for block in cached:
            self._hold(block)
        return [*cached, *self._fresh(new)]

    def publish(self, blocks: Sequence[int], digests: Sequence[bytes]) -> list[int]:
        """The blocks' content is complete: others may find it. The first of equals is kept.

        Returns the indexes in `digests` of those that nobody had.
        """
        new = list[int]()
        for i, (block, digest) in enumerate(zip(blocks, digests, strict=True)):
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._hash_of[block] = digest
                new.append(i)
        return new

    def clear(self) -> bool:
        """Forget what is cached, where nobody holds a block; else do nothing and return False."""
        if len(self._free) < self.num_blocks:
            return False
        self._block_of.clear()
        self._hash_of.clear()
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks, in their order in the sequence: its end is evicted first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)  # worth nothing: reused first

    def _hold(self, block: int) -> None:
        if not self._references[block]:
            del self._free[block]
        self._references[block] += 1

    def _fresh(self, count: int) -> list[int]:
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._references[block] = 1
            if block in self._hash_of:
                self._evict(self._hash_of.pop(block))
        return taken

    def _evict(self, digest: bytes) -> None:
        del self._block_of[digest]
        if self.on_evict:
            self.on_evict(digest)


class KvMemory:
    """The bytes of all blocks. An anonymous mapping: a page costs memory once it is written.

    Writing all bytes of a prompt would take longer than everything else here, so a block that
    was computed is written when somebody is about to read it from outside: `settle`.
    """

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks, self.block_bytes = num_blocks, block_bytes
        self.buffer = mmap.mmap(-1, num_blocks * block_bytes)
        self._repeats = block_bytes // DIGEST_BYTES
        self._known = dict[int, bytes]()  # signatures of blocks read or computed before
        self._unwritten = set[int]()  # of them, whose bytes are not in the buffer yet

    def write(self, blocks: Sequence[int], digests: Sequence[bytes]) -> None:
        """What computing blocks leaves behind: their hashes, each repeated through its block."""
        self._known.update(zip(blocks, digests, strict=True))
        self._unwritten.update(blocks)

    def settle(self, blocks: Iterable[int]) -> None:
        """Put what was computed into the buffer, for someone who reads that."""
        for block in self._unwritten.intersection(blocks):
            start = block * self.block_bytes
            self.buffer[start : start + self.block_bytes] = self._known[block] * self._repeats
            self._unwritten.discard(block)

    def damage(self, block: int) -> None:
        """Make the last byte of a settled block wrong, as a broken link or a bug would."""
        self.buffer[(block + 1) * self.block_bytes - 1] = self._known[block][-1] ^ 0xFF

    def received(self, blocks: Iterable[int]) -> None:
        """Someone else wrote these blocks; forget what was in them."""
        for block in blocks:
            self._known.pop(block, None)
            self._unwritten.discard(block)

    def signatures(self, blocks: Sequence[int]) -> list[bytes]:
        """What the model reads in blocks: the hash that was written, if every byte is right.

        Any other content gives another signature, so a lost or damaged byte changes the answer.
        """
        for block in blocks:
            if block not in self._known:
                self._known[block] = self._read(block)
        return [self._known[block] for block in blocks]

    def _read(self, block: int) -> bytes:
        start = block * self.block_bytes
        content = self.buffer[start : start + self.block_bytes]
        digest = content[:DIGEST_BYTES]
        if content == digest * self._repeats:
            return digest
        return blake2b(content, digest_size=DIGEST_BYTES).digest()
