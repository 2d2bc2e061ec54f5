"""What the router believes to be cached: engines' events, and its own decisions until they come."""

import time

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
from hpc_dynamo.router import KvState, RoutingRequest, adapter_root, block_hashes
from tests.unit.router.requests import BLOCK, whole

PROMPT = list(range(100, 100 + 4 * BLOCK))


def hashes(tokens: list[int] = PROMPT, adapter: str | None = None) -> list[int]:
    return RoutingRequest(block_hashes=ids(tokens, adapter)).hash_list


def ids(tokens: list[int], adapter: str | None = None) -> bytes:
    return block_hashes(
        b"".join(t.to_bytes(4, "little") for t in tokens), BLOCK, adapter_root(adapter)
    )


def stored(first: int, count: int, parent: int | None = None, **more: object) -> BlockStored:
    """Blocks `first` to `first + count` of the prompt, each with its number for a key."""
    keys = list(range(first, first + count))
    tokens = PROMPT[first * BLOCK : (first + count) * BLOCK]
    return BlockStored(keys, parent, tokens, BLOCK, **more)  # type: ignore[arg-type]


class Engine:
    """What one worker says, batch after batch."""

    def __init__(self, caches: KvState, rank: int) -> None:
        self.caches, self.rank, self.said = caches, rank, list[bytes]()
        caches.add_worker(rank)
        assert self.replay(0) is None

    def say(self, *events: KvEvent, lost: bool = False) -> int | None:
        payload = encode_events(KvEventBatch(time.time(), list(events)))
        self.said.append(payload)
        seq = len(self.said) - 1
        return None if lost else self.caches.receive_events(self.rank, seq, payload)

    def replay(self, start: int) -> int | None:
        for seq, payload in list(enumerate(self.said))[start:]:
            self.caches.receive_events(self.rank, seq, payload)
        return self.caches.receive_events(self.rank, REPLAY_END, b"")


def caches(**config: float) -> KvState:
    return KvState(RouterConfig(block_tokens=BLOCK, **config))  # type: ignore[arg-type]


def test_engines_tell_what_they_store_and_evict() -> None:
    known = caches()
    one, two = Engine(known, 1), Engine(known, 2)
    one.say(stored(0, 2), stored(2, 2, parent=1))
    two.say(stored(0, 1))
    assert known.overlaps(hashes()) == {1: 4, 2: 1}
    one.say(BlockRemoved([2]))
    assert known.overlaps(hashes()) == {1: 2, 2: 1}
    one.say(AllBlocksCleared())
    assert known.overlaps(hashes()) == {2: 1}
    assert (known.batches, known.gaps, known.lag_s < 60) == (4, 0, True)


def test_media_are_told_apart() -> None:
    known = caches()
    engine = Engine(known, 0)
    engine.say(stored(0, 2, medium="GPU"), stored(0, 2, medium="CPU"))
    engine.say(BlockRemoved([0, 1], medium="GPU"))
    assert known.overlaps(hashes()) == {0: 2}
    engine.say(BlockRemoved([0, 1], medium="CPU"))
    assert known.overlaps(hashes()) == {}


def test_the_blocks_of_an_adapter_are_not_those_of_the_model() -> None:
    known = caches()
    keys = [("pirate",)] * 3
    Engine(known, 0).say(stored(0, 3, lora_name="pirate", extra_keys=keys), stored(3, 1, parent=2))
    Engine(known, 1).say(stored(0, 4, lora_name="poet", extra_keys=[("poet", "salt"), None]))
    assert known.overlaps(hashes()) == {}
    assert known.overlaps(hashes(adapter="pirate")) == {0: 4}
    assert known.overlaps(hashes(adapter="poet")) == {}


def test_only_what_tokens_alone_make_is_looked_at() -> None:
    known = caches()
    engine = Engine(known, 0)
    engine.say(stored(0, 2, extra_keys=[None, ("salt",)]), stored(0, 2, group_idx=1))
    assert known.overlaps(hashes()) == {}
    engine.say(stored(0, 2, extra_keys=[None, None], group_idx=0), BlockRemoved([0], group_idx=1))
    assert known.overlaps(hashes()) == {0: 2}


def test_what_was_missed_is_asked_for_and_learned() -> None:
    known = caches()
    engine = Engine(known, 0)
    engine.say(stored(0, 1))
    engine.say(stored(1, 1, parent=0), lost=True)
    assert engine.say(stored(2, 1, parent=1)) == 1
    assert known.overlaps(hashes()) == {0: 1}
    assert engine.replay(1) is None
    assert known.overlaps(hashes()) == {0: 3}
    assert (known.gaps, known.resyncs) == (1, 0)


def test_what_is_lost_for_good_makes_the_worker_a_stranger() -> None:
    known = caches()
    engine = Engine(known, 0)
    engine.say(stored(0, 2))
    engine.say(BlockRemoved([0]), lost=True)
    assert engine.say(stored(2, 1, parent=1)) == 1
    assert engine.replay(2) is None  # all that it still has
    assert known.overlaps(hashes()) == {}
    assert (known.gaps, known.resyncs) == (1, 1)
    known.remove_worker(0)
    assert (known.gaps, known.resyncs) == (1, 1)  # counters stay


def test_a_decision_is_believed_until_the_events_come() -> None:
    known = caches()
    known.add_worker(0)
    known.expect(0, hashes())
    assert known.overlaps(hashes()) == {0: 4}
    known.add_worker(0)
    assert known.overlaps(hashes()) == {}


def test_events_that_cannot_be_read_are_counted() -> None:
    known = caches()
    engine = Engine(known, 0)
    known.receive_events(0, 0, b"\x93nonsense")
    engine.said.append(b"")
    engine.say(stored(0, 1))
    assert (known.unreadable_batches, known.overlaps(hashes())) == (1, {0: 1})


def test_who_is_not_here_tells_nothing() -> None:
    known = caches()
    assert known.receive_events(5, 3, b"") is None
    known.remove_worker(5)


async def test_the_router_follows_the_events() -> None:
    router = await whole(2)
    assert router.kv_state.receive_events(1, REPLAY_END, b"") is None
    router.kv_state.receive_events(1, 0, encode_events(KvEventBatch(time.time(), [stored(0, 4)])))
    asked = RoutingRequest(prompt_tokens=len(PROMPT), block_hashes=ids(PROMPT))
    for _ in range(3):
        lease = await router.route(asked)
        assert lease.decode.rank == 1
        lease.release()
    assert router.decisions.overlap_blocks == router.decisions.prompt_blocks == 12


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def timed() -> tuple[KvState, Clock]:
    clock = Clock()
    return KvState(RouterConfig(block_tokens=BLOCK), clock), clock


def test_a_prompt_sent_before_the_first_event_is_not_claimed_after_a_reset() -> None:
    """POST /reset_prefix_cache; vLLM publishes it with the next request's blocks."""
    known, _ = timed()
    engine = Engine(known, 0)
    known.expect(0, hashes())
    engine.say(stored(0, 4))
    assert known.overlaps(hashes()) == {0: 4}
    engine.say(AllBlocksCleared())
    assert known.overlaps(hashes()) == {}
    other = list(range(900, 900 + 2 * BLOCK))
    engine.say(BlockStored([90, 91], None, other, BLOCK))
    assert known.overlaps(hashes()) == {}
    assert known.overlaps(hashes(other)) == {0: 2}


def test_the_first_event_ends_older_guesses_but_not_prompts_under_way() -> None:
    known, clock = timed()
    engine = Engine(known, 0)
    later = list(range(700, 700 + 3 * BLOCK))
    known.expect(0, hashes())
    clock.now += 60
    known.expect(0, hashes(later))
    clock.now += 1
    assert known.overlaps(hashes()) == {0: 4}  # a worker without events keeps it for 120 s
    engine.say(stored(0, 1))
    assert known.overlaps(hashes()) == {0: 1}
    assert known.overlaps(hashes(later)) == {0: 3}
    clock.now += 5.1
    assert known.overlaps(hashes(later)) == {}  # it was never computed


def test_an_evicted_block_is_not_expected_any_more() -> None:
    known, _ = timed()
    engine = Engine(known, 0)
    engine.say(stored(0, 1))
    known.expect(0, hashes())
    engine.say(stored(1, 3, parent=0))
    engine.say(BlockRemoved([3, 2]))
    assert known.overlaps(hashes()) == {0: 2}
    engine.say(BlockRemoved([1, 0]))
    assert known.overlaps(hashes()) == {}


def test_a_block_that_is_left_on_another_medium_is_still_expected() -> None:
    known, _ = timed()
    engine = Engine(known, 0)
    engine.say(stored(0, 4, medium="GPU"), stored(0, 4, medium="CPU"))
    known.expect(0, hashes())
    engine.say(BlockRemoved([3], medium="GPU"))
    assert known.overlaps(hashes()) == {0: 4}
    engine.say(BlockRemoved([3], medium="CPU"))
    assert known.overlaps(hashes()) == {0: 3}


def test_an_eviction_of_one_worker_leaves_the_expectations_of_others() -> None:
    known, _ = timed()
    one, two = Engine(known, 1), Engine(known, 2)
    one.say(stored(0, 4))
    two.say(stored(0, 4))
    for rank in (1, 2):
        known.expect(rank, hashes())
    one.say(BlockRemoved([3]), AllBlocksCleared())
    assert known.overlaps(hashes()) == {2: 4}


def test_an_engine_that_restarted_is_expected_to_have_nothing() -> None:
    known, _ = timed()
    engine = Engine(known, 0)
    engine.say(stored(0, 2))
    engine.say(stored(2, 1, parent=1))
    known.expect(0, hashes())
    engine.said.clear()
    engine.say(stored(0, 1))  # number 0 again
    assert known.overlaps(hashes()) == {0: 1}


def test_a_gap_that_no_replay_fills_ends_expectations() -> None:
    known, _ = timed()
    engine = Engine(known, 0)
    engine.say(stored(0, 2))
    known.expect(0, hashes())
    engine.say(AllBlocksCleared(), lost=True)
    assert engine.say(BlockStored([90], None, PROMPT[:BLOCK], BLOCK)) == 1
    assert known.overlaps(hashes()) == {0: 4}  # until the replay is over, this is the best guess
    engine.replay(2)
    assert known.overlaps(hashes()) == {0: 1}


def test_a_gap_that_a_replay_fills_is_read_in_order() -> None:
    known, _ = timed()
    engine = Engine(known, 0)
    engine.say(stored(0, 4))
    known.expect(0, hashes())
    engine.say(AllBlocksCleared(), lost=True)
    engine.say(stored(0, 1))
    engine.replay(1)
    assert known.overlaps(hashes()) == {0: 1}


def test_a_prompt_that_was_cancelled_before_it_was_computed_is_forgotten() -> None:
    known, clock = timed()
    engine = Engine(known, 0)
    engine.say(BlockStored([90], None, list(range(BLOCK)), BLOCK))
    known.expect(0, hashes())
    clock.now += 5.1
    engine.say(BlockStored([91], 90, list(range(BLOCK)), BLOCK))
    assert known.overlaps(hashes()) == {}


def test_a_worker_without_events_keeps_its_guesses_for_their_time() -> None:
    known, clock = timed()
    Engine(known, 0)  # a replay that holds nothing
    known.expect(0, hashes())
    clock.now += 59
    assert known.overlaps(hashes()) == {0: 4}
    clock.now += 62
    assert known.overlaps(hashes()) == {}
