"""KV events as vLLM publishes them: what the block pool took in and gave up, a batch a step."""

import random
import time
from collections.abc import Sequence

import msgspec

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.kv.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    encode_events,
)
from hpc_dynamo.wire import KvEventPublisher

MEDIUM = "GPU"


class EventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of --kv-events-config: vLLM's names and defaults. `hwm` and the queue are not needed here."""

    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""

    @classmethod
    def parse(cls, text: str) -> "EventsConfig":
        """Raises ConfigError."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as e:
            hint = """'{"enable_kv_cache_events": true, "endpoint": "ipc:///tmp/events"}'"""
            raise ConfigError(f"kv-events-config: {e}", hint=hint) from e

    @property
    def on(self) -> bool:
        return self.enable_kv_cache_events and self.publisher in (None, "zmq")


class Journal:
    """What became of cached blocks, in the order in which it happened."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._events = list[KvEvent]()

    def stored(
        self, chain: Sequence[bytes], tokens: Sequence[int], new: Sequence[int], adapter: str = ""
    ) -> None:
        """The blocks number `new` (rising) of a sequence can be found; `chain` are its hashes."""
        for first, end in _runs(new):
            self._events.append(
                BlockStored(
                    block_hashes=[_name(digest) for digest in chain[first:end]],
                    parent_block_hash=_name(chain[first - 1]) if first else None,
                    token_ids=list(tokens[first * self._block_size : end * self._block_size]),
                    block_size=self._block_size,
                    medium=MEDIUM,
                    lora_name=adapter or None,
                    extra_keys=[(adapter,)] * (end - first) if adapter else None,
                )
            )

    def removed(self, digest: bytes) -> None:
        self._events.append(BlockRemoved([_name(digest)], MEDIUM))  # one each, as vLLM does

    def cleared(self) -> None:
        self._events.append(AllBlocksCleared())

    def take(self) -> list[KvEvent]:
        """All since the last call."""
        events, self._events = self._events, []
        return events


class Announcer:
    """Publishes a journal; `lose_rate` is the share of batches that nobody gets, on purpose."""

    def __init__(
        self, journal: Journal, publisher: KvEventPublisher, lose_rate: float, seed: int
    ) -> None:
        self._journal, self._publisher = journal, publisher
        self._lose_rate, self._dice = lose_rate, random.Random(seed)

    async def announce(self) -> None:
        """What is new, as one batch."""
        events = self._journal.take()
        if events:
            lost = self._dice.random() < self._lose_rate
            payload = encode_events(KvEventBatch(time.time(), events, data_parallel_rank=0))
            await self._publisher.publish(payload, drop=lost)


def _name(digest: bytes) -> int:
    """A block's hash as vLLM tells it where nothing else is asked for: its last 64 bits."""
    return int.from_bytes(digest[-8:], "big")


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and end of each stretch without a gap."""
    runs = list[tuple[int, int]]()
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
