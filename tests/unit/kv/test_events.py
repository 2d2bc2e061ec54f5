"""KV events in every form that engines write, and errors for anything else."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.errors import WireError
from hpc_dynamo.kv.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    decode_events,
    encode_events,
)

hashes = st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=32)
some = st.none() | st.text(max_size=5)
numbers = st.integers(0, 2**32 - 1)
stored = st.builds(
    BlockStored,
    st.lists(hashes, max_size=4),
    st.none() | hashes,
    st.lists(numbers, max_size=20),
    numbers,
    st.none() | numbers,
    some,
    some,
    st.none() | st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2), max_size=3),
    st.none() | numbers,
)
removed = st.builds(BlockRemoved, st.lists(hashes, max_size=4), some, st.none() | numbers)
events = stored | removed | st.just(AllBlocksCleared())
times = st.floats(0, 2e9)
batches = st.builds(KvEventBatch, times, st.lists(events, max_size=5), st.none() | numbers)


@given(batches)
def test_event_batch_round_trip(batch: KvEventBatch) -> None:
    assert decode_events(encode_events(batch)) == batch


def as_map(event: KvEvent) -> dict[str, Any]:
    return {"type": type(event).__struct_config__.tag, **msgspec.structs.asdict(event)}


def as_array(event: KvEvent) -> list[Any]:
    return list(as_map(event).values())


@given(batches, st.booleans(), st.booleans(), st.booleans())
def test_decode_accepts_arrays_maps_and_additional_fields(
    batch: KvEventBatch, batch_is_map: bool, events_are_maps: bool, more: bool
) -> None:
    packed = list[Any]()
    for event in batch.events:
        if events_are_maps:
            packed.append(as_map(event) | ({"session_id": "x"} if more else {}))
        else:
            packed.append(as_array(event) + (["x", None] if more else []))
    fields = {"ts": batch.ts, "events": packed, "data_parallel_rank": batch.data_parallel_rank}
    if more:
        fields["news"] = {"a": 1}
    form: Any = fields if batch_is_map else list(fields.values())
    got = decode_events(msgspec.msgpack.encode(form))
    assert got.ts == batch.ts
    assert got.data_parallel_rank == batch.data_parallel_rank
    assert [as_array(event) for event in got.events] == [as_array(event) for event in batch.events]
    for mine, theirs in zip(batch.events, got.events, strict=True):
        assert isinstance(theirs, type(mine))


def test_decode_accepts_recorded_batches() -> None:
    """Batches written after the sources of vLLM 0.32.0 (without defaults) and SGLang 0.5."""
    vllm = [1.5, [{"type": "BlockStored", "block_hashes": [7], "parent_block_hash": None}], 0]
    vllm[1][0] |= {"token_ids": [1, 2], "block_size": 2, "lora_id": None}  # type: ignore[index]
    vllm[1][0] |= {"medium": "GPU", "lora_name": None, "group_idx": 0}  # type: ignore[index]
    assert decode_events(msgspec.msgpack.encode(vllm)) == KvEventBatch(
        1.5, [BlockStored([7], None, [1, 2], 2, medium="GPU", group_idx=0)], 0
    )
    sglang = [1.5, [["BlockStored", [7], 6, [1, 2], 2, None], ["BlockRemoved", [7]]]]
    one, two = decode_events(msgspec.msgpack.encode(sglang)).events
    assert isinstance(one, BlockStored)
    assert isinstance(two, BlockRemoved)
    assert (one.block_hashes, one.parent_block_hash, one.token_ids) == ([7], 6, [1, 2])
    assert two.block_hashes == [7]


def test_encode_writes_vllm_format() -> None:
    batch = KvEventBatch(
        1.0,
        [
            BlockStored([1], None, [2], 1, medium="GPU"),
            BlockRemoved([1], "GPU"),
            AllBlocksCleared(),
        ],
        0,
    )
    ts, (first, second, third), rank = msgspec.msgpack.decode(encode_events(batch))
    assert (ts, rank) == (1.0, 0)
    needed = {"type", "block_hashes", "parent_block_hash", "token_ids", "block_size"}
    assert needed | {"lora_id", "medium", "lora_name"} <= first.keys()
    assert {"type", "block_hashes", "medium"} <= second.keys()
    assert third == {"type": "AllBlocksCleared"}


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        [],
        {},
        [1.0],
        [1.0, 5],
        [1.0, [5]],
        [1.0, [[]]],
        [1.0, [{}]],
        [1.0, [["Quux", [1]]]],
        [1.0, [{"type": "BlockRemoved"}]],
        [1.0, [{"type": "BlockRemoved", "block_hashes": [1.5]}]],
        [1.0, [{"type": "BlockStored", "block_hashes": [1], "token_ids": [1]}]],
        {"ts": "now", "events": []},
    ],
)
def test_decode_rejects_other_data(wrong: object) -> None:
    with pytest.raises(WireError, match="unreadable KV events") as refused:
        decode_events(msgspec.msgpack.encode(wrong))
    assert "vLLM" in refused.value.hint


@given(st.binary(max_size=60))
def test_decode_of_any_bytes_returns_or_raises_wire_error(data: bytes) -> None:
    try:
        batch = decode_events(data)
    except WireError:
        return
    assert isinstance(batch, KvEventBatch)


@given(batches, st.data())
def test_decode_rejects_truncated_batch(batch: KvEventBatch, data: st.DataObject) -> None:
    whole = encode_events(batch)
    with pytest.raises(WireError):
        decode_events(whole[: data.draw(st.integers(0, len(whole) - 1))])
