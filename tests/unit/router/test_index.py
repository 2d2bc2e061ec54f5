"""The exact index compared with sets of whole prefixes, under random events."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dynamo.router.index.exact import PrefixIndex
from tests.unit.router.event_sequences import (
    BLOCK,
    Prefix,
    Step,
    event_sequences,
    hashes,
    replayed,
    tokens,
)


@settings(max_examples=300, deadline=None)
@given(event_sequences(), st.sampled_from([10**9, 10**9, 100, 40]))
def test_overlaps_equal_a_model_of_plain_sets(steps: list[Step], capacity: int) -> None:
    index, reference = replayed(steps, capacity)
    while index.sweep(100):
        pass
    assert len(index) == len(set().union(*map(reference.held, reference.workers)))
    for rank in list(reference.workers):
        index.remove_worker(rank)
    while index.sweep(1):
        pass
    assert len(index) == 0


EVENTS = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.integers(-2, 6), min_size=1, max_size=4),
        st.one_of(st.none(), st.integers(-2, 6)),
        st.lists(st.integers(0, 1), min_size=4, max_size=4),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(EVENTS)
def test_random_keys_keep_the_index_consistent(
    events: list[tuple[bool, list[int], int | None, list[int]]],
) -> None:
    """Engines may give one key to several blocks, or let a block follow itself."""
    index, held = PrefixIndex(10**9, BLOCK), dict[int, Prefix]()
    index.add_worker(0)
    for stored, keys, parent, content in events:
        if not stored:
            index.remove(0, keys)
            for key in keys:
                held.pop(key, None)
            continue
        blocks = tuple(content[: len(keys)])
        index.store(0, keys, parent, tokens(blocks), BLOCK)
        before = (0, ()) if parent is None else held.get(parent)
        fresh = not all(key in held for key in keys)
        if before and fresh and len(set(keys)) == len(keys):
            for i, key in enumerate(keys):
                held[key] = (0, before[1] + blocks[: i + 1])
        for prefix in held.values():
            said = index.overlaps(hashes(prefix)).get(0, 0)
            depths = range(1, len(prefix[1]) + 1)
            missing = [n for n in depths if (0, prefix[1][:n]) not in held.values()]
            assert said == min(missing, default=len(prefix[1]) + 1) - 1
