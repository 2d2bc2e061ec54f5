"""The pure parts: choice among workers, who has which blocks, hashes of blocks."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.config import Policy, Role
from hpc_dynamo.router import Member, block_hashes
from hpc_dynamo.router.index import ApproximateIndex
from hpc_dynamo.router.policy import POLICIES
from tests.router.asks import BLOCK

Loads = list[dict[str, int]]


def member(rank: int, load: dict[str, int]) -> Member:
    return Member(rank, Role.aggregated, "", **load)


@pytest.mark.parametrize(
    ("policy", "loads", "overlaps", "chosen"),
    [
        # The longest prefix, unless the work before it outweighs that.
        (Policy.kv, [{}, {}], {1: 2}, 1),
        (Policy.kv, [{}, {"prefill_tokens": 2 * BLOCK - 1}], {1: 2}, 1),
        (Policy.kv, [{}, {"prefill_tokens": 2 * BLOCK + 1}], {1: 2}, 0),
        (Policy.kv, [{}, {"blocks": 1}], {1: 2}, 1),
        (Policy.kv, [{}, {"blocks": 3}], {1: 2}, 0),
        (Policy.kv, [{"blocks": 1}, {"blocks": 1, "prefill_tokens": 1}], {}, 0),
        # More overlap than prompt is worth no more than the prompt.
        (Policy.kv, [{}, {"blocks": 1}], {0: 5, 1: 9}, 0),
        # Equal costs: the fewest requests, then whose turn is the longest ago.
        (Policy.kv, [{"active": 1, "turn": 1}, {"turn": 9}], {}, 1),
        (Policy.kv, [{"turn": 2}, {"turn": 1}, {"turn": 3}], {}, 1),
        (Policy.least_loaded, [{"active": 2}, {"active": 1, "blocks": 9}], {0: 5}, 1),
        (Policy.least_loaded, [{"turn": 2}, {"turn": 1}], {}, 1),
        (Policy.round_robin, [{"turn": 5}, {"turn": 4, "active": 7}], {0: 5}, 1),
        (Policy.round_robin, [{"turn": 5, "served": 1}, {"turn": 6}], {}, 0),
    ],
)
def test_choice(policy: Policy, loads: Loads, overlaps: dict[int, int], chosen: int) -> None:
    members = [member(rank, load) for rank, load in enumerate(loads)]
    tokens = 5 * BLOCK
    assert POLICIES[policy](members, tokens, overlaps, BLOCK).rank == chosen
    assert POLICIES[policy](members[::-1], tokens, overlaps, BLOCK).rank == chosen


def index_of(*ranks: int, capacity: int = 100) -> ApproximateIndex:
    index = ApproximateIndex(capacity)
    for rank in ranks:
        index.join(rank)
    return index


def test_overlaps_count_blocks_from_the_start() -> None:
    index = index_of(0, 1, 2)
    index.add(0, [1, 2, 3])
    index.add(1, [1, 2])
    index.add(2, [9])
    assert index.overlaps([1, 2, 3, 4]) == {0: 3, 1: 2}
    assert index.overlaps([1, 8, 3]) == {0: 1, 1: 1}
    assert index.overlaps([2, 3]) == {0: 2, 1: 1}
    assert index.overlaps([7, 1]) == {}
    assert index.overlaps([]) == {}


def test_who_leaves_holds_nothing_and_comes_back_with_nothing() -> None:
    index = index_of(0, 1)
    index.add(0, [1, 2])
    index.add(1, [1])
    index.leave(0)
    index.leave(0)
    assert index.overlaps([1, 2]) == {1: 1}
    index.join(0)
    assert index.overlaps([1, 2]) == {1: 1}
    index.add(0, [1, 2])
    assert index.overlaps([1, 2]) == {0: 2, 1: 1}
    index.join(0)  # a rank that was not seen to leave
    assert index.overlaps([1, 2]) == {1: 1}


def test_the_ends_of_the_oldest_prompts_are_forgotten_first() -> None:
    index = index_of(0, capacity=5)
    index.add(0, [1, 2, 3])
    index.add(0, [11, 12, 13])
    assert len(index) == 5
    assert index.overlaps([1, 2, 3]) == {0: 2}
    assert index.overlaps([11, 12, 13]) == {0: 3}
    index.add(0, [1])
    index.add(0, [21, 22])
    assert index.overlaps([1, 2, 3]) == {0: 1}
    assert index.overlaps([11, 12, 13]) == {0: 2}


PROMPTS = st.lists(st.integers(0, 5), max_size=6, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "add"]), st.integers(0, 4), PROMPTS), max_size=30
)


@given(STEPS, PROMPTS)
def test_overlaps_are_those_of_plain_sets(
    steps: list[tuple[str, int, list[int]]], prompt: list[int]
) -> None:
    index, held = ApproximateIndex(1000), dict[int, set[int]]()
    for step, rank, blocks in steps:
        match step:
            case "join":
                index.join(rank)
                held[rank] = set()
            case "leave":
                index.leave(rank)
                held.pop(rank, None)
            case "add" if rank in held:
                index.add(rank, blocks)
                held[rank] |= set(blocks)
    depths = {
        rank: next((i for i, b in enumerate(prompt) if b not in has), len(prompt))
        for rank, has in held.items()
    }
    assert index.overlaps(prompt) == {rank: n for rank, n in depths.items() if n}


def ids(*tokens: int) -> bytes:
    return array("I", tokens).tobytes()


def chain(tokens: bytes, block: int = BLOCK) -> list[int]:
    return memoryview(block_hashes(tokens, block)).cast("Q").tolist()


@pytest.mark.parametrize(("count", "blocks"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_only_whole_blocks_have_hashes(count: int, blocks: int) -> None:
    assert len(chain(ids(*range(count)))) == blocks


def test_a_block_counts_with_all_before_it() -> None:
    same = ids(1, 2, 3, 4)
    first, second = chain(same * 2)
    assert first != second
    assert chain(ids(9, 2, 3, 4) + same)[1] not in (first, second)
    assert chain(ids(2, 1, 3, 4))[0] != first
    assert chain(same * 2, block=8) != [second]


TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(TOKENS, TOKENS, TOKENS)
def test_hashes_agree_as_far_as_the_prompts_do(
    start: list[int], left: list[int], right: list[int]
) -> None:
    one, other = start + left, start + right
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    agree = min(len(one), len(other)) if common is None else common
    pairs = list(zip(chain(ids(*one)), chain(ids(*other)), strict=False))
    assert [a == b for a, b in pairs] == [(i + 1) * BLOCK <= agree for i in range(len(pairs))]
