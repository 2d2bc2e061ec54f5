"""Pages of the KV cache: who holds which, which can be reused, what is in them.

`BlockPool` is bookkeeping: reference counts, a prefix cache by chained hash, eviction of the
block that has been free for longest. `KvMemory` is the bytes, a real buffer, so that real
transfers move them. The answer is made from those bytes: see `KvMemory.signature`.
"""

import mmap
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 32


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a block: of its tokens and, through `parent`, of all before them."""
    return blake2b(array("I", tokens).tobytes(), key=parent, digest_size=DIGEST_BYTES).digest()


class BlockPool:
    """Reference counts of `num_blocks` blocks. A block is free at zero; it may be cached then."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
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
        return [*cached, *(self._fresh() for _ in range(new))]

    def publish(self, block: int, digest: bytes) -> None:
        """The block's content is complete: others may find it. The first of equals is kept."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

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

    def _fresh(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        self._references[block] = 1
        return block


class KvMemory:
    """The bytes of all blocks. An anonymous mapping: a page costs memory once it is written."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks, self.block_bytes = num_blocks, block_bytes
        self.buffer = mmap.mmap(-1, num_blocks * block_bytes)
        self._repeats = block_bytes // DIGEST_BYTES
        self._known = dict[int, bytes]()  # signatures of blocks read or written before

    def write(self, block: int, digest: bytes) -> None:
        """What computing a block leaves behind: its hash, repeated through the whole block."""
        start = block * self.block_bytes
        self.buffer[start : start + self.block_bytes] = digest * self._repeats
        self._known[block] = digest

    def damage(self, block: int) -> None:
        """Make the last byte of a written block wrong, as a broken link or a bug would."""
        self.buffer[(block + 1) * self.block_bytes - 1] = self._known[block][-1] ^ 0xFF

    def received(self, blocks: Iterable[int]) -> None:
        """Someone else wrote these blocks; forget what was in them."""
        for block in blocks:
            self._known.pop(block, None)

    def signature(self, block: int) -> bytes:
        """What the model reads in a block: the hash that was written, if every byte is right.

        Any other content gives another signature, so a lost or damaged byte changes the answer.
        """
        known = self._known.get(block)
        if known is None:
            start = block * self.block_bytes
            content = self.buffer[start : start + self.block_bytes]
            digest = content[:DIGEST_BYTES]
            intact = content == digest * self._repeats
            known = digest if intact else blake2b(content, digest_size=DIGEST_BYTES).digest()
            self._known[block] = known
        return known
