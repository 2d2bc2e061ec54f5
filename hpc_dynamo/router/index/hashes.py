"""Chained hashes of whole blocks of token ids.

The hash of a block covers all blocks before it, as in vLLM's prefix cache. Equal hashes thus mean
equal prefixes. It is XXH3 (xxhash.com), seeded with the hash of the previous block and cut to 60
bits: such an integer takes 32 bytes in CPython, one of 64 bits takes 48. Frontends, router and
engine events must agree on these values, which tests/unit/router/test_index_hashes.py fixes.

`rendezvous_weight` needs a hash whose bits all depend on all input bits. A CRC is linear, so that
ids of equal length would order the workers alike.
"""

from array import array
from struct import iter_unpack

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from hpc_dynamo.router.index.block_owners import TargetKey

TOKEN_BYTES = 4  # ids are little-endian uint32
# More, of a prompt whose limit is unknown, would exceed the size of a message to the head.
MAX_HASHES = 1 << 20
HASH_BITS = (1 << 60) - 1


def block_hashes(tokens: bytes, block_tokens: int, parent: int = 0) -> bytes:
    """Return `chained_hashes` of the first MAX_HASHES blocks as uint64 in native byte order."""
    start = tokens[: MAX_HASHES * block_tokens * TOKEN_BYTES]
    return array("Q", chained_hashes(start, block_tokens, parent)).tobytes()


def chained_hashes(tokens: bytes, block_tokens: int, parent: int = 0) -> list[int]:
    """Return the hash of each whole block of `tokens` (concatenated uint32 ids).

    `parent` is the hash of the preceding block, or an `adapter_root`.
    """
    size = block_tokens * TOKEN_BYTES
    if len(tokens) == size:  # the next block of a response
        return [xxh3_64_intdigest(tokens, parent) & HASH_BITS]
    whole = tokens[: len(tokens) - len(tokens) % size]
    seed = parent
    return [
        seed := xxh3_64_intdigest(block, seed) & HASH_BITS
        for (block,) in iter_unpack(f"{size}s", whole)
    ]


def adapter_root(adapter: str | None) -> int:
    """Return the seed of a prompt's first block; it distinguishes LoRA adapters."""
    return xxh3_64_intdigest(adapter.encode()) & HASH_BITS if adapter else 0


def rendezvous_weight(session: str, key: TargetKey) -> int:
    """Return the weight of a target for a session, 128 bits; the lowest weight is chosen.

    A target that joins or leaves changes no other target's weight, so that only its own sessions
    move (rendezvous hashing; Thaler and Ravishankar, 1998).
    """
    return xxh3_128_intdigest(f"{session}/{key}".encode(errors="surrogatepass"))
