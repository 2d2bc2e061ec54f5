"""NVIDIA Dynamo's index through its Python bindings.

Runs in Dynamo's interpreter. `RadixTree` is the index of its KvRouter without the transports. It
receives events as JSON, with a hash of each block's tokens.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version

import msgspec

from benchmarks.router.workload import BLOCK, Synthetic
from hpc_dynamo.kv.events import BlockHash, BlockRemoved, BlockStored, decode_events

WORD_BYTES = 8


class DynamoIndex:
    """Prompts are lists of token ids, for its hash function."""

    name = "NVIDIA Dynamo"

    def __init__(self, workers: int) -> None:
        core = import_module("dynamo._core")
        self._hashes, self._tree = core.compute_block_hash_for_seq, core.RadixTree()
        self.keys = [(worker, 0) for worker in range(workers)]  # (worker, data parallel rank)
        self.version, self._events = version("ai-dynamo"), 0

    def learn(self, worker: int, payload: bytes) -> None:
        """Decode with the decoder of hpc_dynamo; use Dynamo's hashes, events and tree."""
        for event in decode_events(payload).events:
            match event:
                case BlockStored():
                    hashes = self._hashes(event.token_ids, event.block_size)
                    parent = event.parent_block_hash
                    above = None if parent is None else _word(parent)
                    keys = map(_word, event.block_hashes)
                    self._tree.apply_event(worker, self._stored(above, keys, hashes))
                case BlockRemoved(block_hashes=names):
                    removed = {"removed": {"block_hashes": [_word(name) for name in names]}}
                    self._tree.apply_event(worker, self._event(removed))

    def _stored(self, parent: int | None, keys: "map[int]", hashes: Sequence[int]) -> bytes:
        pairs = zip(keys, hashes, strict=True)
        blocks = [{"block_hash": key, "tokens_hash": hash_} for key, hash_ in pairs]
        return self._event({"stored": {"parent_hash": parent, "blocks": blocks}})

    def _event(self, data: object) -> bytes:
        self._events += 1
        return msgspec.json.encode({"event_id": self._events, "data": data, "dp_rank": 0})

    def prepared(self, prompt: Synthetic) -> bytes:
        return self._stored(None, map(_word, prompt.keys), self.hashes_of(prompt))

    def hashes_of(self, prompt: Synthetic) -> list[int]:
        """Return any numbers: its tree never receives tokens."""
        return memoryview(prompt.tokens).cast("Q").tolist()[:: BLOCK * 4 // WORD_BYTES]

    def fill(self, worker: int, event: bytes) -> None:
        """Apply a ready event, without hashing, decoding and JSON encoding."""
        self._tree.apply_event(worker, event)

    def prompt(self, tokens: bytes) -> list[int]:
        """Return the input of `hashes`."""
        return memoryview(tokens).cast("I").tolist()

    def hashes(self, tokens: list[int]) -> Sequence[int]:
        found: list[int] = self._hashes(tokens, BLOCK)
        return found

    def find(self, hashes: Sequence[int]) -> Mapping[tuple[int, int], int]:
        found: Mapping[tuple[int, int], int] = self._tree.find_matches(hashes).scores
        return found

    def settle(self) -> None:
        """Wait for all events: its thread executes calls in order."""
        self._tree.find_matches([])


def _word(key: BlockHash) -> int:
    return key if isinstance(key, int) else int.from_bytes(key[-WORD_BYTES:], "little")
