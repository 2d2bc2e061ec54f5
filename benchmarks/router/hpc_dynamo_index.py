"""hpc_dynamo's prefix index."""

import platform
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.router.workload import BLOCK, Synthetic
from hpc_dynamo.kv.events import BlockRemoved, BlockStored, decode_events
from hpc_dynamo.router.index.exact import PrefixIndex
from hpc_dynamo.router.index.hashes import chained_hashes

UNLIMITED = 10**9  # blocks


class HpcDynamoIndex:
    """Prompts are bytes of token ids, as in frontends."""

    name = "hpc-dynamo"
    version = f"Python {platform.python_version()}"

    def __init__(self, workers: int) -> None:
        self._index, self.keys = PrefixIndex(UNLIMITED, BLOCK), [*range(workers)]
        for worker in self.keys:
            self._index.add_worker(worker)

    def learn(self, worker: int, payload: bytes) -> None:
        """Apply a message of an engine, as the router does."""
        for event in decode_events(payload).events:
            match event:
                case BlockStored():
                    ids, parent = array("I", event.token_ids).tobytes(), event.parent_block_hash
                    self._index.store(worker, event.block_hashes, parent, ids, event.block_size)
                case BlockRemoved(block_hashes=keys):
                    self._index.remove(worker, keys)

    def prepared(self, prompt: Synthetic) -> Synthetic:
        return prompt

    def hashes_of(self, prompt: Synthetic) -> Sequence[int]:
        return self.hashes(prompt.tokens)

    def fill(self, worker: int, prompt: Synthetic) -> None:
        """Store a prompt, with hashing, without decoding."""
        self._index.store(worker, prompt.keys, None, prompt.tokens, BLOCK)

    def prompt(self, tokens: bytes) -> bytes:
        """Return the input of `hashes`."""
        return tokens

    def hashes(self, tokens: bytes) -> Sequence[int]:
        return chained_hashes(tokens, BLOCK)

    def find(self, hashes: Sequence[int]) -> Mapping[Any, int]:
        return self._index.overlaps(hashes)

    def settle(self) -> None:
        """Do nothing: events are applied at once."""
