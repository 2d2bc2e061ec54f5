"""Token ids to chained hashes of whole blocks.

The hash of a block covers all blocks before it, so that equal hashes mean equal prefixes, as
in vLLM's prefix cache. XXH3 with the block before as its seed (xxhash.com).
"""

from array import array

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = 4  # ids are little-endian uint32


def block_hashes(tokens: bytes, block_tokens: int) -> bytes:
    """Of `tokens` (uint32 ids, concatenated): an uint64 for each whole block."""
    size, seed = block_tokens * TOKEN_BYTES, 0
    out = array("Q")
    for start in range(0, len(tokens) - size + 1, size):
        seed = xxh3_64_intdigest(tokens[start : start + size], seed)
        out.append(seed)
    return out.tobytes()
