"""What an engine tells of its prefix cache: blocks that can be found from now on, or no more.

Records and their MessagePack, as engines publish them. Source: vLLM,
vllm/distributed/kv_events.py; SGLang's has the same. Versions differ in whether a batch and the
events in it are arrays or maps, and in how many fields follow the first few: `decode` takes all,
`encode` writes what vLLM 0.32.0 does, the batch as an array and each event as a map.
"""

from typing import Any

import msgspec

from hpc_dynamo.errors import WireError

END = -1  # in the place of a batch's number: a replay is over
Hash = int | bytes  # an engine's own name of a block and all before it; only equality counts


class Stored(msgspec.Struct, frozen=True, tag="BlockStored"):
    """Consecutive blocks that the cache has now.

    Hashes of a block cover all before it, so `parent_block_hash` (None: they begin a prompt) and
    `token_ids` (`block_size` for each of the blocks) tell where they belong.
    """

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None  # GPU, CPU, STORAGE; an engine without tiers says GPU or nothing
    lora_name: str | None = None
    extra_keys: list[Any] | None = None  # a block: of what but tokens its hash is made, or None
    group_idx: int | None = None  # of models whose layers have caches of several kinds


class Removed(msgspec.Struct, frozen=True, tag="BlockRemoved"):
    """Blocks that the cache has no more."""

    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None


class Cleared(msgspec.Struct, frozen=True, tag="AllBlocksCleared"):
    """The cache is empty."""


Event = Stored | Removed | Cleared


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """What one step of the engine did, in that order. `ts` is seconds since the epoch."""

    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None


def encode(batch: Batch) -> bytes:
    return _ENCODER.encode(batch)


def decode(payload: bytes) -> Batch:
    """Raises WireError for bytes that are no batch of events.

    Of events that came as arrays the types are subclasses of those above.
    """
    try:
        try:
            return _BATCH.decode(payload)  # the form of vLLM 0.32.0, in half the time
        except msgspec.ValidationError:
            raw = (_BATCH_MAP if _is_map(payload) else _BATCH_ARRAY).decode(payload)
            return Batch(raw.ts, [_event(each) for each in raw.events], raw.data_parallel_rank)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        hint = "does this version of the engine publish KV events as vLLM 0.32 does?"
        raise WireError(f"an engine sent unreadable KV events: {e}", hint=hint) from e


def _event(raw: msgspec.Raw) -> Event:
    return (_EVENT_MAP if _is_map(raw) else _EVENT_ARRAY).decode(raw)


def _is_map(data: bytes | msgspec.Raw) -> bool:
    """By the first byte (MessagePack specification, formats): fixmap, map 16, map 32."""
    first = next(iter(memoryview(data)[:1]), 0)
    return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)


class _StoredArray(Stored, frozen=True, tag="BlockStored", array_like=True):
    pass


class _RemovedArray(Removed, frozen=True, tag="BlockRemoved", array_like=True):
    pass


class _ClearedArray(Cleared, frozen=True, tag="AllBlocksCleared", array_like=True):
    pass


class _RawBatch(msgspec.Struct):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _RawBatchArray(_RawBatch, array_like=True):
    pass


_ENCODER = msgspec.msgpack.Encoder()
_BATCH = msgspec.msgpack.Decoder(Batch)
_BATCH_MAP = msgspec.msgpack.Decoder(_RawBatch)
_BATCH_ARRAY = msgspec.msgpack.Decoder(_RawBatchArray)
_EVENT_MAP: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Stored | Removed | Cleared)
_EVENT_ARRAY: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(
    _StoredArray | _RemovedArray | _ClearedArray
)
