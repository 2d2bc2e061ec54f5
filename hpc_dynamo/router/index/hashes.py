"""Token ids to chained hashes of whole blocks.

The hash of a block covers all blocks before it, so that equal hashes mean equal prefixes, as
in vLLM's prefix cache. XXH3 (xxhash.com), seeded with the previous block's hash, cut to 60 bits: an
int of that size takes 32 bytes in CPython, one of 64 bits takes 48. Frontends, router and engine
events must agree on these values; tests/unit/router/test_index_hashes.py pins them.

`rendezvous` ranks workers for a session. It needs a hash whose bits all depend on all input bits:
a CRC is linear, so that ids of equal length order the workers alike.
"""

from array import array
from struct import iter_unpack

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

TOKEN_BYTES = 4  # ids are little-endian uint32
HASH_BITS = (1 << 60) - 1


def block_hashes(tokens: bytes, block_tokens: int, before: int = 0) -> bytes:
    """Of `tokens` (uint32 ids, concatenated): an uint64 for each whole block. See `chain`."""
    return array("Q", chained_hashes(tokens, block_tokens, before)).tobytes()


def chained_hashes(tokens: bytes, block_tokens: int, before: int = 0) -> list[int]:
    """The hashes as numbers. `before` is the hash of the block before the first, or a `root`."""
    size = block_tokens * TOKEN_BYTES
    if len(tokens) == size:  # an answer's next block
        return [xxh3_64_intdigest(tokens, before) & HASH_BITS]
    whole = tokens[: len(tokens) - len(tokens) % size]
    seed = before
    return [
        seed := xxh3_64_intdigest(block, seed) & HASH_BITS
        for (block,) in iter_unpack(f"{size}s", whole)
    ]


def adapter_root(adapter: str | None) -> int:
    """What the first block of a prompt follows: the same tokens under a LoRA adapter are others."""
    return xxh3_64_intdigest(adapter.encode()) & HASH_BITS if adapter else 0


def rendezvous_weight(session: str, rank: int) -> int:
    """Return the weight of a worker for a session, 128 bits; the lowest weight is chosen.

    A worker that joins or leaves changes no other worker's weight, so that only sessions of that
    worker move (rendezvous hashing; Thaler and Ravishankar, 1998).
    """
    return xxh3_128_intdigest(f"{session}/{rank}".encode(errors="surrogatepass"))
