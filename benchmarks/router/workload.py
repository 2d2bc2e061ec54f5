"""Input of both indexes: the prompts of a trace as tokens and as KV events.

NVIDIA Dynamo's interpreter imports this too: standard library and msgspec only.
"""

import json
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from hpc_dynamo.kv import events

BLOCK = 16  # tokens
# Blocks per id of the trace, which stands for 512 tokens.
BLOCKS_PER_ID = 32
VOCABULARY = 128_000
LONG_BLOCKS = 500  # a prompt of 8,000 tokens
EVICTED = 64  # blocks per eviction batch


@dataclass(frozen=True)
class Request:
    """One line of the trace."""

    ids: tuple[int, ...]
    output_tokens: int

    @property
    def tokens(self) -> bytes:
        return b"".join(map(tokens, self.ids))

    def worker(self, workers: int) -> int:
        """Return the worker by the second id, which the turns of a conversation share."""
        return self.ids[min(1, len(self.ids) - 1)] % workers


@cache
def _pool() -> "array[int]":
    return array("I", random.Random(0).choices(range(VOCABULARY), k=1 << 16))


def tokens(kind: int) -> bytes:
    """Return 512 token ids as uint32, equal for equal ids of the trace."""
    pool, size = _pool(), BLOCKS_PER_ID * BLOCK
    start = kind * 7919 % (len(pool) - size)
    return array("I", [kind % VOCABULARY, kind // VOCABULARY]).tobytes() + (
        pool[start + 2 : start + size].tobytes()
    )


def read(trace: Path, count: int) -> list[Request]:
    """Read up to `count` requests; 0: all."""
    with trace.open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count or 1 << 60), strict=False)]
    return [Request(tuple(row["hash_ids"]), row["output_length"]) for row in rows]


def long_prompts(requests: Sequence[Request]) -> list[bytes]:
    """Return the first 8,000 tokens of prompts that have as many."""
    size = LONG_BLOCKS * BLOCK * 4
    return [whole[:size] for r in requests if len(whole := r.tokens) >= size]


@dataclass(frozen=True)
class Batch:
    """One message of an engine."""

    worker: int
    payload: bytes
    blocks: int


class Engines:
    """Workers with unlimited caches, and their KV events as of vLLM 0.32.

    A prompt adds its blocks in one batch, a response one batch per block. Evictions remove the ends
    of prompts first, in batches of 64 events of one block.
    """

    def __init__(self, requests: Sequence[Request], workers: int) -> None:
        self._requests, self._workers = requests, workers
        self._held = [set[bytes]() for _ in range(workers)]
        self._ends = list[tuple[int, bytes, int]]()  # worker, last key, tokens of the answer

    def prompts(self) -> Iterator[Batch]:
        for request in self._requests:
            worker = request.worker(self._workers)
            held, keys, had = self._held[worker], _keys(request.ids), 0
            while had < len(keys) and keys[had] in held:
                had += 1
            held.update(keys[had:])
            self._ends.append((worker, keys[-1], request.output_tokens))
            if had < len(keys):
                parent = keys[had - 1] if had else None
                said = request.tokens[had * BLOCK * 4 :]
                yield _stored(worker, keys[had:], parent, said)

    def answers(self) -> Iterator[Batch]:
        for number, (worker, parent, count) in enumerate(self._ends):
            for _ in range(count // BLOCK):
                key = sha256(parent + number.to_bytes(4, "little")).digest()
                yield _stored(worker, [key], parent, tokens(number)[: BLOCK * 4])
                parent = key

    def evictions(self) -> Iterator[Batch]:
        for request in self._requests:
            worker = request.worker(self._workers)
            keys = [key for key in reversed(_keys(request.ids)) if key in self._held[worker]]
            self._held[worker].difference_update(keys)
            for start in range(0, len(keys), EVICTED):
                some = keys[start : start + EVICTED]
                removed = [events.BlockRemoved([key], "GPU") for key in some]
                yield Batch(
                    worker, events.encode_events(events.KvEventBatch(0.0, [*removed])), len(some)
                )


def _keys(ids: tuple[int, ...]) -> list[bytes]:
    """Return a digest per block, which covers all blocks before it."""
    before, keys = b"", list[bytes]()
    for kind in ids:
        for place in range(BLOCKS_PER_ID):
            before = sha256(before + (kind << 8 | place).to_bytes(8, "little")).digest()
            keys.append(before)
    return keys


def _stored(worker: int, keys: list[bytes], parent: bytes | None, said: bytes) -> Batch:
    ids = memoryview(said).cast("I").tolist()
    event = events.BlockStored([*keys], parent, ids, BLOCK, medium="GPU")
    return Batch(worker, events.encode_events(events.KvEventBatch(0.0, [event])), len(keys))


@dataclass(frozen=True)
class Synthetic:
    """The n-th of any number of prompts of 8,000 tokens without a common prefix.

    They are cheap to create, so that an index can be filled beyond the trace.
    """

    tokens: bytes
    keys: list[bytes]


def synthetic(number: int) -> Synthetic:
    draw = random.Random(number).randbytes(LONG_BLOCKS * (BLOCK * 4 + 32))
    keys = [draw[n * 32 : n * 32 + 32] for n in range(LONG_BLOCKS)]
    return Synthetic(draw[LONG_BLOCKS * 32 :], keys)
