"""Single cases of the exact index."""

import pytest

from hpc_dynamo.router.index.exact import PrefixIndex
from tests.unit.router.event_sequences import BLOCK, LENGTH, Run, hashes, tokens


def index_of(*ranks: int, capacity: int = 1000) -> PrefixIndex:
    index = PrefixIndex(capacity, BLOCK)
    for rank in ranks:
        index.add_worker(rank)
    return index


ZEROS = Run(LENGTH, 0, 10, 1, 0, 0)


def test_invalid_blocks_are_skipped_and_counted() -> None:
    index = index_of(0)
    index.store(0, [1, 2], None, tokens((0, 0)), BLOCK + 1)
    index.store(0, [1, 2], None, tokens((0, 0, 0)), BLOCK)
    index.store(0, [1, 1], None, tokens((0, 0)), BLOCK)
    index.store(0, [1], None, b"", 0)
    assert (index.unfit, index.orphans, index.full, len(index)) == (7, 0, 0, 0)
    index.store(0, [2, 3], 1, tokens((0, 0)), BLOCK)
    assert (index.unfit, index.orphans, index.full, len(index)) == (7, 2, 0, 0)
    index.store(0, [1], None, tokens((0,)), BLOCK)
    index.store(0, [2], 1, tokens((0,)), 2 * BLOCK)
    index.remove(0, [1])
    assert (index.unfit, index.orphans, index.full, len(index)) == (8, 2, 0, 0)
    index.store(7, [1], None, tokens((0,)), BLOCK)  # an unknown worker
    index.store(0, [], None, b"", BLOCK)
    index.remove(7, [1])
    assert (index.unfit, index.orphans, index.full, len(index)) == (8, 2, 0, 0)


def test_full_index_skips_new_blocks() -> None:
    index = index_of(0, 1, capacity=15)
    index.store(0, ZEROS.keys(), None, ZEROS.tokens(), BLOCK)
    index.store(1, ZEROS.keys(), None, ZEROS.tokens(), BLOCK)
    assert index.full == 10
    prompt = hashes(ZEROS.upto(LENGTH))
    assert index.overlaps(prompt) == {0: 10}
    index.store(0, ZEROS.keys(), None, ZEROS.tokens(), BLOCK)  # repeated: nothing is new
    assert index.full == 10
    index.remove_worker(0)  # makes room before any sweep
    index.store(1, ZEROS.keys(), None, ZEROS.tokens(), BLOCK)
    assert index.overlaps(prompt) == {1: 10}


def test_overlap_of_a_long_prompt_ends_at_the_first_gap() -> None:
    whole = Run(LENGTH, 0, LENGTH, 1, 0, 0)
    index, prompt = index_of(0, 1, 2), hashes(whole.upto(LENGTH))
    for rank in (0, 1, 2):
        index.store(rank, whole.keys(), None, whole.tokens(), BLOCK)
    index.remove(0, [whole.key(10)])
    index.remove(1, [whole.key(LENGTH - 1)])
    assert index.overlaps(prompt) == {0: 10, 1: LENGTH - 1, 2: LENGTH}
    index.store(0, [whole.key(10)], whole.key(9), tokens((0,)), BLOCK)
    assert index.overlaps(prompt) == {0: LENGTH, 1: LENGTH - 1, 2: LENGTH}
    assert index.overlaps(prompt[:64]) == {0: 64, 1: 64, 2: 64}


@pytest.mark.parametrize("workers", [1, 64, 512])
def test_overlaps_with_many_workers(workers: int) -> None:
    index = index_of(*range(workers), capacity=10**9)
    prompt = hashes(ZEROS.upto(LENGTH))
    for rank in range(workers):
        run = Run(LENGTH, 0, rank % LENGTH + 1, 1, 0, 0)
        index.store(rank, run.keys(), None, run.tokens(), BLOCK)
    assert index.overlaps(prompt) == {rank: rank % LENGTH + 1 for rank in range(workers)}


def test_thousand_restarts_leave_no_blocks() -> None:
    index = index_of(0)
    for _ in range(1000):
        index.add_worker(0)
        index.store(0, ZEROS.keys(), None, ZEROS.tokens(), BLOCK)
    assert index.overlaps(hashes(ZEROS.upto(LENGTH))) == {0: 10}
    while index.sweep(1000):
        pass
    assert len(index) == 10


def test_reused_worker_bit_has_no_old_blocks() -> None:
    whole, few = Run(LENGTH, 0, LENGTH, 1, 0, 0), Run(LENGTH, 0, 5, 1, 0, 0)
    index = index_of(0, 1)
    for rank in (0, 1):
        index.store(rank, whole.keys(), None, whole.tokens(), BLOCK)
    index.remove_worker(0)
    while index.sweep(1000):
        pass
    index.add_worker(2)
    index.store(2, few.keys(), None, few.tokens(), BLOCK)
    assert index.overlaps(hashes(whole.upto(LENGTH))) == {1: LENGTH, 2: 5}


def test_blocks_of_different_sizes_form_one_prefix() -> None:
    index, prompt = index_of(0), hashes(ZEROS.upto(12))
    index.store(0, [1, 2], None, tokens((0,) * 2), BLOCK)
    index.store(0, [3, 4], 2, tokens((0,) * 8), 4 * BLOCK)
    index.store(0, [5, 6], 4, tokens((0,) * 2), BLOCK)
    assert index.overlaps(prompt) == {0: 12}
    for key, left in ((6, 11), (5, 10), (4, 6), (2, 1), (3, 1), (1, 0)):
        index.remove(0, [key])
        assert index.overlaps(prompt) == ({0: left} if left else {})
    assert len(index) == 0


def test_refilled_page_with_a_gap_is_not_complete() -> None:
    first, rest = Run(LENGTH, 0, 20, 1, 0, 0), Run(LENGTH, 20, LENGTH, 1, 0, 0)
    index = index_of(0)
    index.store(0, first.keys(), None, first.tokens(), BLOCK)
    index.remove(0, [first.key(10)])
    index.store(0, rest.keys(), rest.parent(), rest.tokens(), BLOCK)
    assert index.overlaps(hashes(rest.upto(LENGTH))) == {0: 10}


def test_block_stays_until_its_last_copy_is_removed() -> None:
    index, prompt = index_of(0), hashes(ZEROS.upto(2))
    mediums = ["GPU", "CPU", "DISK"]
    for medium in mediums:
        index.store(0, [1], None, tokens((0,)), BLOCK, medium)
    index.store(0, [2], 1, tokens((0,)), BLOCK, "NET")  # follows a block on another medium
    for medium in mediums:
        assert index.overlaps(prompt) == {0: 2}
        index.remove(0, [1], medium)
    assert index.overlaps(prompt) == {}
    assert len(index) == 1


def test_repeated_key_refers_to_its_last_position() -> None:
    index = index_of(0)
    index.store(0, [4, 5], None, tokens((0, 0)), BLOCK)
    index.remove(0, [4])
    index.store(0, [4], 5, tokens((0,)), BLOCK)
    assert len(index) == 2
    index.remove(0, [4])
    assert len(index) == 1


@pytest.mark.parametrize(
    "keys",
    [
        [1, 2, 3],
        [-1, 2**64 - 2, 7],
        [b"a", b"b", b"c"],
        [b"a" * 9, b"b" * 10, b"c" * 5],
        [1, b"2", 3],
    ],
)
def test_integer_and_digest_keys_are_accepted(keys: list[int | bytes]) -> None:
    index = index_of(0)
    index.store(0, keys[:2], None, tokens((0, 0)), BLOCK)
    index.store(0, keys[2:], keys[1], tokens((0,)), BLOCK)
    assert index.overlaps(hashes(ZEROS.upto(5))) == {0: 3}
    index.remove(0, keys[1:])
    assert index.overlaps(hashes(ZEROS.upto(5))) == {0: 1}
