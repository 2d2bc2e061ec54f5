"""KV state: blocks confirmed by events, and blocks expected from routing decisions."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.kv.events import (
    REPLAY_END,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    encode_events,
)
from hpc_dynamo.router import KvState, RoutingRequest, TargetKey, adapter_root, block_hashes
from tests.unit.router.requests import BLOCK, aggregated_router

PROMPT = list(range(100, 100 + 4 * BLOCK))


def hashes(tokens: list[int] = PROMPT, adapter: str | None = None) -> list[int]:
    return RoutingRequest(block_hashes=ids(tokens, adapter)).hash_list


def ids(tokens: list[int], adapter: str | None = None) -> bytes:
    return block_hashes(
        b"".join(t.to_bytes(4, "little") for t in tokens), BLOCK, adapter_root(adapter)
    )


def stored(first: int, count: int, parent: int | None = None, **more: object) -> BlockStored:
    """Return an event for blocks `first` to `first + count` of the prompt, keyed by number."""
    keys = list(range(first, first + count))
    tokens = PROMPT[first * BLOCK : (first + count) * BLOCK]
    return BlockStored(keys, parent, tokens, BLOCK, **more)  # type: ignore[arg-type]


class Engine:
    """Publishes the events of one worker."""

    def __init__(self, new_state: KvState, rank: int) -> None:
        self.new_state, self.rank, self.payloads = new_state, rank, list[bytes]()
        new_state.add_worker(rank)
        assert self.replay(0) is None

    def publish(self, *events: KvEvent, lost: bool = False) -> int | None:
        payload = encode_events(KvEventBatch(time.time(), list(events)))
        self.payloads.append(payload)
        seq = len(self.payloads) - 1
        return None if lost else self.new_state.receive_events(self.rank, seq, payload)

    def replay(self, start: int) -> int | None:
        for seq, payload in list(enumerate(self.payloads))[start:]:
            self.new_state.receive_events(self.rank, seq, payload)
        return self.new_state.receive_events(self.rank, REPLAY_END, b"")


def new_state(**config: float) -> KvState:
    return KvState(RouterConfig(block_tokens=BLOCK, **config))  # type: ignore[arg-type]


def test_stored_and_removed_events_update_overlaps() -> None:
    state = new_state()
    one, two = Engine(state, 1), Engine(state, 2)
    one.publish(stored(0, 2), stored(2, 2, parent=1))
    two.publish(stored(0, 1))
    assert state.overlaps(hashes()) == {1: 4, 2: 1}
    one.publish(BlockRemoved([2]))
    assert state.overlaps(hashes()) == {1: 2, 2: 1}
    one.publish(AllBlocksCleared())
    assert state.overlaps(hashes()) == {2: 1}
    assert (state.batches, state.gaps, state.lag_s < 60) == (4, 0, True)


def test_media_are_indexed_separately() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 2, medium="GPU"), stored(0, 2, medium="CPU"))
    engine.publish(BlockRemoved([0, 1], medium="GPU"))
    assert state.overlaps(hashes()) == {0: 2}
    engine.publish(BlockRemoved([0, 1], medium="CPU"))
    assert state.overlaps(hashes()) == {}


def test_adapter_blocks_differ_from_base_model_blocks() -> None:
    state = new_state()
    keys = [("pirate",)] * 3
    Engine(state, 0).publish(
        stored(0, 3, lora_name="pirate", extra_keys=keys), stored(3, 1, parent=2)
    )
    Engine(state, 1).publish(stored(0, 4, lora_name="poet", extra_keys=[("poet", "salt"), None]))
    assert state.overlaps(hashes()) == {}
    assert state.overlaps(hashes(adapter="pirate")) == {0: 4}
    assert state.overlaps(hashes(adapter="poet")) == {}


def test_blocks_with_extra_keys_are_ignored() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 2, extra_keys=[("salt",), None]), stored(0, 2, group_idx=1))
    assert state.overlaps(hashes()) == {}
    engine.publish(
        stored(0, 2, extra_keys=[None, None], group_idx=0), BlockRemoved([0], group_idx=1)
    )
    assert state.overlaps(hashes()) == {0: 2}


def test_blocks_before_a_medium_are_indexed() -> None:
    """vLLM names the medium in the blocks that contain it. Later blocks have it as an ancestor."""
    state = new_state()
    image = ("9f2c", -3)
    Engine(state, 0).publish(
        stored(0, 3, extra_keys=[None, None, (image,)]), stored(3, 1, parent=2, extra_keys=[None])
    )
    Engine(state, 1).publish(
        stored(0, 2, lora_name="poet", extra_keys=[("poet",), ("poet", image)])
    )
    assert state.overlaps(hashes()) == {0: 2}
    assert state.overlaps(hashes(adapter="poet")) == {1: 1}


@pytest.mark.parametrize("pad", [1 << 32, (1 << 62) + 1_000_000, (1 << 64) - 1, -1])
def test_ids_that_sglang_makes_from_media_end_the_known_prefix(pad: int) -> None:
    state = new_state()
    tokens = [*PROMPT[: 2 * BLOCK + 3], *[pad] * (BLOCK - 3)]
    media = BlockStored([0, 1, 2], None, tokens, BLOCK)
    Engine(state, 0).publish(media, BlockStored([3], 2, PROMPT[3 * BLOCK :], BLOCK))
    engine = Engine(state, 1)
    engine.publish(BlockStored([9], None, [pad] * BLOCK, BLOCK), stored(0, 2))
    assert state.overlaps(hashes()) == {0: 2, 1: 2}


def test_salted_blocks_of_sglang_are_ignored() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 4, cache_salt="tenant"))
    assert state.overlaps(hashes()) == {}
    engine.publish(stored(0, 2, cache_salt=None))
    assert state.overlaps(hashes()) == {0: 2}


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention"])
def test_full_attention_decides_in_models_with_sliding_windows(kind: str) -> None:
    state = new_state()
    engine = Engine(state, 0)
    window: Any = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 2}
    full: Any = {"kv_cache_spec_kind": kind, "group_idx": 1}
    engine.publish(stored(0, 4, group_idx=0, **window), stored(0, 3, **full))
    assert state.overlaps(hashes()) == {0: 3}
    engine.publish(BlockRemoved([0, 1], group_idx=0))  # left the window
    assert state.overlaps(hashes()) == {0: 3}
    engine.publish(stored(3, 1, parent=2, group_idx=0, **window), BlockRemoved([2], group_idx=1))
    assert state.overlaps(hashes()) == {0: 2}


def test_events_of_a_real_model_with_sliding_windows() -> None:
    """Recorded from vLLM 0.32.0: a small Gemma 3, one prompt of 600 tokens, blocks of 32."""
    recorded = Path(__file__).with_name("gemma3_vllm_events.msgpack").read_bytes()
    state = KvState(RouterConfig(block_tokens=32))
    state.add_worker(0)
    state.receive_events(0, 0, recorded)
    tokens = b"".join((number * 7 + 10).to_bytes(4, "little") for number in range(600))
    request = RoutingRequest(block_hashes=block_hashes(tokens, 32, adapter_root(None)))
    assert state.overlaps(request.hash_list) == {0: 18}


def test_first_group_with_full_attention_is_kept() -> None:
    state = new_state()
    engine = Engine(state, 0)
    full: Any = {"kv_cache_spec_kind": "full_attention"}
    engine.publish(stored(0, 3, group_idx=1, **full), stored(0, 4, group_idx=2, **full))
    assert state.overlaps(hashes()) == {0: 3}


def test_models_without_full_attention_use_group_0() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(
        stored(0, 3, group_idx=0, kv_cache_spec_kind="sliding_window"),
        stored(0, 4, group_idx=1, kv_cache_spec_kind="mamba"),
    )
    assert state.overlaps(hashes()) == {0: 3}


def test_groups_of_a_restarted_engine_are_learned_again() -> None:
    state = new_state()
    Engine(state, 0).publish(stored(0, 3, group_idx=1, kv_cache_spec_kind="full_attention"))
    Engine(state, 0).publish(stored(0, 2, group_idx=0, kv_cache_spec_kind="full_attention"))
    assert state.overlaps(hashes()) == {0: 2}


def test_blocks_of_a_shared_tier_are_not_counted_as_the_workers_own() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 4, medium="STORAGE", locality="REMOTE"))
    assert state.overlaps(hashes()) == {}
    engine.publish(stored(0, 2, medium="STORAGE", locality="LOCAL"))
    engine.publish(BlockRemoved([0, 1], medium="STORAGE", locality="REMOTE"))
    assert state.overlaps(hashes()) == {0: 2}


def test_blocks_in_lower_tiers_have_a_cost() -> None:
    """Events as of vLLM with an OffloadingConnector: the device evicts, the host keeps."""
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 4, medium="GPU"), stored(0, 4, medium="CPU"))
    cached: dict[TargetKey, int] = {0: 4}
    assert state.overlaps(hashes()) == cached
    assert state.load_tokens(hashes(), cached) == {}
    engine.publish(BlockRemoved([3, 2], medium="GPU"))
    assert state.overlaps(hashes()) == cached
    assert state.load_tokens(hashes(), cached) == {0: pytest.approx(0.1 * 2 * BLOCK)}
    engine.publish(stored(2, 1, parent=1, medium="STORAGE"), BlockRemoved([2], medium="CPU"))
    assert state.load_tokens(hashes(), cached) == {0: pytest.approx((0.1 + 0.5) * BLOCK)}
    state.expect(0, hashes())
    assert state.load_tokens(hashes(), cached) == {}, "a request loads them now"
    state.forget(0)
    engine.publish(stored(0, 4, medium="CPU"))
    assert state.load_tokens(hashes(), cached) == {0: pytest.approx(0.1 * 4 * BLOCK)}
    engine.publish(stored(0, 4, medium="GPU"))
    assert state.load_tokens(hashes(), cached) == {}


def test_batch_of_tensorrt_llm_is_indexed() -> None:
    """The form that its publisher documents; a part of an image has a text instead of an id."""
    state = new_state()
    Engine(state, 0)
    image: list[int | str] = [*PROMPT[: 2 * BLOCK], "digest", *PROMPT[2 * BLOCK + 1 :]]
    event = {
        "type": "BlockStored", "block_hashes": [-1, 2, 3, 4], "parent_block_hash": None,
        "token_ids": image, "block_size": BLOCK, "lora_id": None, "medium": "GPU",
        "lora_name": None, "group_idx": 0, "mm_keys": [[], [], [{"type": "mm_key", "hash": "d"}]],
    }  # fmt: skip
    payload = msgspec.msgpack.encode([time.time(), [event], 0])
    assert state.receive_events(0, 0, payload) is None
    assert state.overlaps(hashes()) == {0: 2}
    removed = {"type": "BlockRemoved", "block_hashes": [2, 3, 4], "medium": "GPU"}
    state.receive_events(0, 1, msgspec.msgpack.encode([time.time(), [removed], 0]))
    assert (state.overlaps(hashes()), state.unreadable_batches) == ({0: 1}, 0)


@pytest.mark.parametrize(
    ("medium", "share"),
    [("GPU", 0), ("CPU", 0.1), ("cpu", 0.1), ("CPU_PINNED", 0.1), ("DISK", 0.5), ("STORAGE", 0.5),
     (None, 0), ("NEW", 0)],
)  # fmt: skip
def test_media_of_vllm_and_sglang_have_their_costs(medium: str | None, share: float) -> None:
    state = new_state()
    Engine(state, 0).publish(stored(0, 4, medium=medium))
    expected = {0: pytest.approx(share * 4 * BLOCK)} if share else {}
    assert state.load_tokens(hashes(), state.overlaps(hashes())) == expected


def test_blocks_of_sglangs_shared_pool_are_not_counted() -> None:
    state = new_state()
    Engine(state, 0).publish(stored(0, 4, medium="EXTERNAL"))
    assert state.overlaps(hashes()) == {}


async def test_worker_with_blocks_on_its_device_is_preferred() -> None:
    router = await aggregated_router(3)
    first, second, third = (Engine(router.kv_state, rank) for rank in range(3))
    third.publish(stored(0, 1, medium="GPU"))
    second.publish(stored(0, 4, medium="CPU"))
    request = RoutingRequest(prompt_tokens=4 * BLOCK, block_hashes=ids(PROMPT))
    explained = router.explain(request)
    assert [w.rank for w in explained.workers if w.chosen] == [1], "loading is faster"
    assert [w.load_tokens for w in explained.workers] == [0, pytest.approx(0.4 * BLOCK), 0]
    assert explained.workers[1].left_tokens == round(0.4 * BLOCK)
    first.publish(stored(0, 4, medium="GPU"))
    assert [w.rank for w in router.explain(request).workers if w.chosen] == [0]


def test_missed_events_are_requested_and_applied() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 1))
    engine.publish(stored(1, 1, parent=0), lost=True)
    assert engine.publish(stored(2, 1, parent=1)) == 1
    assert state.overlaps(hashes()) == {0: 1}
    assert engine.replay(1) is None
    assert state.overlaps(hashes()) == {0: 3}
    assert (state.gaps, state.resyncs) == (1, 0)


def test_permanently_lost_events_drop_all_blocks_of_the_worker() -> None:
    state = new_state()
    engine = Engine(state, 0)
    engine.publish(stored(0, 2))
    engine.publish(BlockRemoved([0]), lost=True)
    assert engine.publish(stored(2, 1, parent=1)) == 1
    assert engine.replay(2) is None  # all batches that it still has
    assert state.overlaps(hashes()) == {}
    assert (state.gaps, state.resyncs) == (1, 1)
    state.remove_worker(0)
    assert (state.gaps, state.resyncs) == (1, 1)  # counters stay


def test_routed_prompt_is_expected_until_events_arrive() -> None:
    state = new_state()
    state.add_worker(0)
    state.expect(0, hashes())
    assert state.overlaps(hashes()) == {0: 4}
    state.add_worker(0)
    assert state.overlaps(hashes()) == {}


def test_unreadable_events_are_counted() -> None:
    state = new_state()
    engine = Engine(state, 0)
    state.receive_events(0, 0, b"\x93nonsense")
    engine.payloads.append(b"")
    engine.publish(stored(0, 1))
    assert (state.unreadable_batches, state.overlaps(hashes())) == (1, {0: 1})


def test_events_of_an_unknown_worker_are_ignored() -> None:
    state = new_state()
    assert state.receive_events(5, 3, b"") is None
    state.remove_worker(5)


async def test_router_routes_by_kv_events() -> None:
    router = await aggregated_router(2)
    assert router.kv_state.receive_events(1, REPLAY_END, b"") is None
    router.kv_state.receive_events(1, 0, encode_events(KvEventBatch(time.time(), [stored(0, 4)])))
    request = RoutingRequest(prompt_tokens=len(PROMPT), block_hashes=ids(PROMPT))
    for _ in range(3):
        lease = await router.route(request)
        assert lease.decode.rank == 1
        lease.release()
    assert router.decisions.overlap_blocks == router.decisions.prompt_blocks == 12


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def timed() -> tuple[KvState, Clock]:
    clock = Clock()
    return KvState(RouterConfig(block_tokens=BLOCK), clock), clock


def test_prompt_sent_before_the_first_event_is_dropped_by_a_reset() -> None:
    """vLLM publishes POST /reset_prefix_cache with the next request's blocks."""
    state, _ = timed()
    engine = Engine(state, 0)
    state.expect(0, hashes())
    engine.publish(stored(0, 4))
    assert state.overlaps(hashes()) == {0: 4}
    engine.publish(AllBlocksCleared())
    assert state.overlaps(hashes()) == {}
    other = list(range(900, 900 + 2 * BLOCK))
    engine.publish(BlockStored([90, 91], None, other, BLOCK))
    assert state.overlaps(hashes()) == {}
    assert state.overlaps(hashes(other)) == {0: 2}


def test_first_event_ends_older_expectations_but_not_recent_prompts() -> None:
    state, clock = timed()
    engine = Engine(state, 0)
    later = list(range(700, 700 + 3 * BLOCK))
    state.expect(0, hashes())
    clock.now += 60
    state.expect(0, hashes(later))
    clock.now += 1
    assert state.overlaps(hashes()) == {0: 4}  # a worker without events keeps it for 120 s
    engine.publish(stored(0, 1))
    assert state.overlaps(hashes()) == {0: 1}
    assert state.overlaps(hashes(later)) == {0: 3}
    clock.now += 5.1
    assert state.overlaps(hashes(later)) == {}  # it was never computed


def test_evicted_block_is_not_expected() -> None:
    state, _ = timed()
    engine = Engine(state, 0)
    engine.publish(stored(0, 1))
    state.expect(0, hashes())
    engine.publish(stored(1, 3, parent=0))
    engine.publish(BlockRemoved([3, 2]))
    assert state.overlaps(hashes()) == {0: 2}
    engine.publish(BlockRemoved([1, 0]))
    assert state.overlaps(hashes()) == {}


def test_block_on_another_medium_is_still_expected() -> None:
    state, _ = timed()
    engine = Engine(state, 0)
    engine.publish(stored(0, 4, medium="GPU"), stored(0, 4, medium="CPU"))
    state.expect(0, hashes())
    engine.publish(BlockRemoved([3], medium="GPU"))
    assert state.overlaps(hashes()) == {0: 4}
    engine.publish(BlockRemoved([3], medium="CPU"))
    assert state.overlaps(hashes()) == {0: 3}


def test_prompt_with_media_is_expected_although_no_event_confirms_it() -> None:
    """Blocks 0 and 1 are text, block 2 starts with an image."""
    state, clock = timed()
    engine = Engine(state, 0)
    state.expect(0, hashes(), 2)
    clock.now += 60
    engine.publish(stored(0, 2))
    assert state.overlaps(hashes()) == {0: 2}
    state.expect(0, hashes(), 2)
    clock.now += 50
    assert state.overlaps(hashes()) == {0: 4}
    engine.publish(BlockRemoved([1, 0]))
    assert state.overlaps(hashes()) == {}
    state.expect(0, hashes(), 0)
    engine.publish(AllBlocksCleared())
    assert state.overlaps(hashes()) == {}


def test_recent_prompt_with_media_outlives_the_first_event() -> None:
    state, clock = timed()
    engine = Engine(state, 0)
    state.expect(0, hashes(), 1)
    engine.publish(stored(0, 1))
    clock.now += 30
    assert state.overlaps(hashes()) == {0: 4}
    clock.now += 121
    assert state.overlaps(hashes()) == {0: 1}


def test_eviction_keeps_expectations_of_other_workers() -> None:
    state, _ = timed()
    one, two = Engine(state, 1), Engine(state, 2)
    one.publish(stored(0, 4))
    two.publish(stored(0, 4))
    for rank in (1, 2):
        state.expect(rank, hashes())
    one.publish(BlockRemoved([3]), AllBlocksCleared())
    assert state.overlaps(hashes()) == {2: 4}


def test_restarted_engine_has_no_expected_blocks() -> None:
    state, _ = timed()
    engine = Engine(state, 0)
    engine.publish(stored(0, 2))
    engine.publish(stored(2, 1, parent=1))
    state.expect(0, hashes())
    engine.payloads.clear()
    engine.publish(stored(0, 1))  # number 0 again
    assert state.overlaps(hashes()) == {0: 1}


def test_unfilled_gap_ends_expectations() -> None:
    state, _ = timed()
    engine = Engine(state, 0)
    engine.publish(stored(0, 2))
    state.expect(0, hashes())
    engine.publish(AllBlocksCleared(), lost=True)
    assert engine.publish(BlockStored([90], None, PROMPT[:BLOCK], BLOCK)) == 1
    assert state.overlaps(hashes()) == {0: 4}  # the estimate while the replay runs
    engine.replay(2)
    assert state.overlaps(hashes()) == {0: 1}


def test_replayed_gap_is_applied_in_order() -> None:
    state, _ = timed()
    engine = Engine(state, 0)
    engine.publish(stored(0, 4))
    state.expect(0, hashes())
    engine.publish(AllBlocksCleared(), lost=True)
    engine.publish(stored(0, 1))
    engine.replay(1)
    assert state.overlaps(hashes()) == {0: 1}


def test_cancelled_prompt_expires() -> None:
    state, clock = timed()
    engine = Engine(state, 0)
    engine.publish(BlockStored([90], None, list(range(BLOCK)), BLOCK))
    state.expect(0, hashes())
    clock.now += 5.1
    engine.publish(BlockStored([91], 90, list(range(BLOCK)), BLOCK))
    assert state.overlaps(hashes()) == {}


def test_worker_without_events_keeps_expectations_until_they_expire() -> None:
    state, clock = timed()
    Engine(state, 0)  # an empty replay
    state.expect(0, hashes())
    clock.now += 59
    assert state.overlaps(hashes()) == {0: 4}
    clock.now += 62
    assert state.overlaps(hashes()) == {}
