"""Block hashes are chained, and equal in every process and version."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.router import block_hashes
from hpc_dynamo.router.index.hashes import MAX_HASHES, adapter_root, chained_hashes
from hpc_dynamo.router.rpc.protocol import MAX_FRAME_BYTES
from tests.unit.router.requests import BLOCK


def ids(*tokens: int) -> bytes:
    return array("I", tokens).tobytes()


def chained(tokens: bytes, block: int = BLOCK) -> list[int]:
    return memoryview(block_hashes(tokens, block)).cast("Q").tolist()


@pytest.mark.parametrize(("count", "blocks"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_partial_block_has_no_hash(count: int, blocks: int) -> None:
    assert len(chained(ids(*range(count)))) == blocks


def test_block_hash_covers_all_earlier_blocks() -> None:
    same = ids(1, 2, 3, 4)
    first, second = chained(same * 2)
    assert first != second
    assert chained(ids(9, 2, 3, 4) + same)[1] not in (first, second)
    assert chained(ids(2, 1, 3, 4))[0] != first
    assert chained(same * 2, block=8) != [second]


TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(TOKENS, TOKENS, TOKENS)
def test_hashes_are_equal_up_to_the_first_difference(
    start: list[int], left: list[int], right: list[int]
) -> None:
    one, other = start + left, start + right
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    agree = min(len(one), len(other)) if common is None else common
    pairs = list(zip(chained(ids(*one)), chained(ids(*other)), strict=False))
    assert [a == b for a, b in pairs] == [(i + 1) * BLOCK <= agree for i in range(len(pairs))]


def test_hashes_equal_golden_values() -> None:
    """Processes of one job may run different versions, which must agree."""
    assert chained(ids(*range(32)), 16) == [703132860376739405, 398857545873467624]
    assert chained_hashes(ids(*range(16)), 16, adapter_root("french")) == [662195345756061489]
    assert adapter_root(None) == adapter_root("") == 0
    assert adapter_root("french") == 671494222333973578


@given(TOKENS)
def test_hashes_continue_from_a_parent_hash(prompt: list[int]) -> None:
    whole = chained_hashes(ids(*prompt), BLOCK)
    for cut in range(len(whole)):
        before = whole[cut - 1] if cut else 0
        assert chained_hashes(ids(*prompt[cut * BLOCK :]), BLOCK, before) == whole[cut:]
    assert all(0 <= h < 1 << 60 for h in whole)


def test_hashes_of_an_endless_prompt_fit_into_a_message() -> None:
    """A body of 32 MB with blocks of one token ended the connection to the head."""
    hashes = block_hashes(bytes(4) * (MAX_HASHES + 1), 1)
    assert len(hashes) == 8 * MAX_HASHES < MAX_FRAME_BYTES
