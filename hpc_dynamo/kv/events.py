"""Events of an engine's prefix cache: blocks that were stored or removed.

Records and their MessagePack encoding, as engines publish them. Source: vLLM,
vllm/distributed/kv_events.py; SGLang's differ in `cache_salt`. TensorRT-LLM's are maps with
`mm_keys` (tensorrt_llm/_torch/pyexecutor/kv_cache_events.py at 13599e98c71c). Versions differ in
whether a batch and its events are arrays or maps, and in the number of trailing fields.
`decode_events` accepts all of them; `encode_events` writes the form of vLLM 0.32.0, a batch as an
array and each event as a map.
"""

from typing import Any

import msgspec

from hpc_dynamo.errors import WireError

REPLAY_END = -1  # sequence number that ends a replay
BlockHash = int | bytes  # engine's name for a block and all before it; only equality counts


class BlockStored(msgspec.Struct, frozen=True, tag=True):
    """Consecutive blocks were added to the cache.

    The hash of a block covers all blocks before it. `parent_block_hash` is None for the first
    blocks of a prompt.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    # Integers, `block_size` per block. TensorRT-LLM has texts for parts of media.
    token_ids: list[Any]
    block_size: int  # tokens
    lora_id: int | None = None
    medium: str | None = None  # GPU, CPU, STORAGE; engines without tiers send GPU or nothing
    lora_name: str | None = None
    extra_keys: list[Any] | None = None  # per block: hashed values other than tokens, or None
    group_idx: int | None = None  # for models whose layers have several kinds of cache
    kv_cache_spec_kind: str | None = None  # kind of attention of this group
    kv_cache_spec_sliding_window: int | None = None  # tokens
    locality: str | None = None  # REMOTE for a tier that workers share, such as files
    cache_salt: str | None = None  # SGLang; vLLM has it in extra_keys


class BlockRemoved(msgspec.Struct, frozen=True, tag=True):
    """Blocks were removed from the cache."""

    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, tag=True):
    """All blocks were removed from the cache."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, frozen=True, array_like=True):
    """Events of one engine step, in order."""

    ts: float  # seconds since the epoch
    events: list[KvEvent]
    data_parallel_rank: int | None = None


def encode_events(batch: KvEventBatch) -> bytes:
    return _ENCODER.encode(batch)


def decode_events(payload: bytes) -> KvEventBatch:
    """Return the batch. Raises WireError for bytes that are not a batch of events.

    Events that were sent as arrays are instances of subclasses of the types above.
    """
    try:
        try:
            return _BATCH.decode(payload)  # the form of vLLM 0.32.0, in half the time
        except msgspec.ValidationError:
            raw = (_BATCH_MAP if _is_map(payload) else _BATCH_ARRAY).decode(payload)
            events = [_decode_event(event) for event in raw.events]
            return KvEventBatch(raw.ts, events, raw.data_parallel_rank)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        hint = "check that this engine version publishes KV events like vLLM 0.32"
        raise WireError(f"an engine sent unreadable KV events: {e}", hint=hint) from e


def _decode_event(raw: msgspec.Raw) -> KvEvent:
    return (_EVENT_MAP if _is_map(raw) else _EVENT_ARRAY).decode(raw)


def _is_map(data: bytes | msgspec.Raw) -> bool:
    """Return True for the first byte of a fixmap, map 16 or map 32 (MessagePack, formats)."""
    first = next(iter(memoryview(data)[:1]), 0)
    return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)


class _StoredArray(BlockStored, frozen=True, tag="BlockStored", array_like=True):
    pass


class _RemovedArray(BlockRemoved, frozen=True, tag="BlockRemoved", array_like=True):
    pass


class _ClearedArray(AllBlocksCleared, frozen=True, tag="AllBlocksCleared", array_like=True):
    pass


class _RawBatch(msgspec.Struct):
    """A KvEventBatch whose events are not decoded yet."""

    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _RawBatchArray(_RawBatch, array_like=True):
    pass


_ENCODER = msgspec.msgpack.Encoder()
_BATCH = msgspec.msgpack.Decoder(KvEventBatch)
_BATCH_MAP = msgspec.msgpack.Decoder(_RawBatch)
_BATCH_ARRAY = msgspec.msgpack.Decoder(_RawBatchArray)
_EVENT_MAP: msgspec.msgpack.Decoder[KvEvent] = msgspec.msgpack.Decoder(KvEvent)
_EVENT_ARRAY: msgspec.msgpack.Decoder[KvEvent] = msgspec.msgpack.Decoder(
    _StoredArray | _RemovedArray | _ClearedArray
)
