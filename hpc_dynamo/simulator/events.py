"""KV events in vLLM's form: changes of the prefix cache, published as one batch per step."""

import time
from collections.abc import Awaitable, Callable, Sequence

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

MEDIUM = "GPU"


class KvEventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Value of --kv-events-config, with vLLM's names and defaults.

    `hwm` and `max_queue_size` are accepted and have no effect.
    """

    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""

    @classmethod
    def parse(cls, text: str) -> "KvEventsConfig":
        """Parse the option's JSON. Raises ConfigError."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as e:
            hint = """'{"enable_kv_cache_events": true, "endpoint": "ipc:///tmp/events"}'"""
            raise ConfigError(f"kv-events-config: {e}", hint=hint) from e

    @property
    def enabled(self) -> bool:
        return self.enable_kv_cache_events and self.publisher in (None, "zmq")

    def endpoint_of(self, rank: int) -> str:
        return _of_rank(self.endpoint, rank)

    def replay_endpoint_of(self, rank: int) -> str | None:
        return _of_rank(self.replay_endpoint, rank) if self.replay_endpoint else None


def _of_rank(endpoint: str, rank: int) -> str:
    """Return the endpoint of a data-parallel rank, as vLLM derives it. Raises ConfigError."""
    if not rank:
        return endpoint
    if "inproc" in endpoint:
        return f"{endpoint}_dp{rank}"
    base, _, port = endpoint.rpartition(":")
    if "tcp" in endpoint and port.isdecimal():
        return f"{base}:{int(port) + rank}"
    what = f"kv-events-config: {endpoint} cannot serve several data-parallel ranks"
    raise ConfigError(what, hint="a tcp endpoint, or a name that contains inproc")


class KvEventJournal:
    """Changes of the prefix cache, in the order in which they happened."""

    def __init__(self, block_size: int, rank: int = 0) -> None:
        self._block_size, self._rank = block_size, rank
        self._events = list[KvEvent]()

    def stored(
        self, hashes: Sequence[bytes], tokens: Sequence[int], new: Sequence[int], adapter: str = ""
    ) -> None:
        """Record that the blocks with the (ascending) indexes `new` of a sequence are cached.

        `hashes` are those of all full blocks of the sequence.
        """
        for first, end in _runs(new):
            self._events.append(
                BlockStored(
                    block_hashes=[_short_hash(digest) for digest in hashes[first:end]],
                    parent_block_hash=_short_hash(hashes[first - 1]) if first else None,
                    token_ids=list(tokens[first * self._block_size : end * self._block_size]),
                    block_size=self._block_size,
                    medium=MEDIUM,
                    lora_name=adapter or None,
                    extra_keys=[(adapter,)] * (end - first) if adapter else None,
                )
            )

    def removed(self, digest: bytes) -> None:
        """Record an eviction. Each block is an event of its own, as in vLLM."""
        self._events.append(BlockRemoved([_short_hash(digest)], MEDIUM))

    def cleared(self) -> None:
        self._events.append(AllBlocksCleared())

    def drain(self) -> list[KvEvent]:
        """Return and forget all recorded events."""
        events, self._events = self._events, []
        return events

    async def publish(self, publish: Callable[[bytes], Awaitable[None]]) -> None:
        """Publish all recorded events as one batch."""
        if events := self.drain():
            batch = KvEventBatch(time.time(), events, data_parallel_rank=self._rank)
            await publish(encode_events(batch))


def _short_hash(digest: bytes) -> int:
    """Return the last 64 bits, vLLM's default form of a block hash in events."""
    return int.from_bytes(digest[-8:], "big")


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return start and end of each run of consecutive numbers."""
    runs = list[tuple[int, int]]()
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
