"""What both indexes of benchmarks.router are given: a trace's prompts as tokens and as KV events.

Standard library and msgspec alone: NVIDIA Dynamo's interpreter imports this too.
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
OF_A_KIND = 32  # blocks of 16 in one id of the trace, which stands for 512 tokens
VOCABULARY = 128_000
LONG_BLOCKS = 500  # a prompt of 8,000 tokens
GONE = 64  # blocks that a step of the engine evicts


@dataclass(frozen=True)
class Request:
    """One line of the trace."""

    ids: tuple[int, ...]
    output_tokens: int

    @property
    def tokens(self) -> bytes:
        return b"".join(map(tokens, self.ids))

    def worker(self, workers: int) -> int:
        """By the second id: turns of a conversation share it, conversations the first."""
        return self.ids[min(1, len(self.ids) - 1)] % workers


@cache
def _pool() -> "array[int]":
    return array("I", random.Random(0).choices(range(VOCABULARY), k=1 << 16))


def tokens(kind: int) -> bytes:
    """512 ids as uint32, the same for the same id of the trace."""
    pool, size = _pool(), OF_A_KIND * BLOCK
    start = kind * 7919 % (len(pool) - size)
    return array("I", [kind % VOCABULARY, kind // VOCABULARY]).tobytes() + (
        pool[start + 2 : start + size].tobytes()
    )


def read(trace: Path, count: int) -> list[Request]:
    """Up to `count` requests; all, where it is 0."""
    with trace.open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count or 1 << 60), strict=False)]
    return [Request(tuple(row["hash_ids"]), row["output_length"]) for row in rows]


def long_prompts(requests: Sequence[Request]) -> list[bytes]:
    """Tokens of those with 8,000 and more, cut there."""
    size = LONG_BLOCKS * BLOCK * 4
    return [whole[:size] for r in requests if len(whole := r.tokens) >= size]


@dataclass(frozen=True)
class Batch:
    """One message of an engine."""

    worker: int
    payload: bytes
    blocks: int


class Engines:
    """Workers with endless caches, and what they publish, as vLLM 0.32 does: blocks that a prompt
    adds in one batch; a block of an answer in one of its own; evictions, the ends of prompts
    first, in batches of 64 events of one block."""

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
            for start in range(0, len(keys), GONE):
                some = keys[start : start + GONE]
                removed = [events.BlockRemoved([key], "GPU") for key in some]
                yield Batch(
                    worker, events.encode_events(events.KvEventBatch(0.0, [*removed])), len(some)
                )


def _keys(ids: tuple[int, ...]) -> list[bytes]:
    """A digest for each block, which covers all before it."""
    before, keys = b"", list[bytes]()
    for kind in ids:
        for place in range(OF_A_KIND):
            before = sha256(before + (kind << 8 | place).to_bytes(8, "little")).digest()
            keys.append(before)
    return keys


def _stored(worker: int, keys: list[bytes], parent: bytes | None, said: bytes) -> Batch:
    ids = memoryview(said).cast("I").tolist()
    event = events.BlockStored([*keys], parent, ids, BLOCK, medium="GPU")
    return Batch(worker, events.encode_events(events.KvEventBatch(0.0, [event])), len(keys))


@dataclass(frozen=True)
class Synthetic:
    """The n-th of endlessly many prompts of 8,000 tokens that share nothing: cheap to make, so
    that an index can be filled beyond the trace."""

    tokens: bytes
    keys: list[bytes]


def synthetic(number: int) -> Synthetic:
    draw = random.Random(number).randbytes(LONG_BLOCKS * (BLOCK * 4 + 32))
    keys = [draw[n * 32 : n * 32 + 32] for n in range(LONG_BLOCKS)]
    return Synthetic(draw[LONG_BLOCKS * 32 :], keys)
