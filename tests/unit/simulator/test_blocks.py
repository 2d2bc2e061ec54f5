"""The block pool under random operations, and detection of wrong bytes."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpc_dynamo.simulator.blocks import BlockPool, KvMemory, hash_block, hash_blocks

ROOT = bytes(32)
SIZE = 12


class Histories(RuleBasedStateMachine):
    """Blocks are allocated, published and released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(SIZE)
        self.held = list[list[int]]()

    @rule(story=st.integers(0, 3), length=st.integers(1, 5), publish=st.booleans())
    def take(self, story: int, length: int, publish: bool) -> None:
        hashes = [hash_block(ROOT, [story, i]) for i in range(length)]
        cached = self.pool.find_cached(hashes)
        before = self.pool.num_free
        blocks = self.pool.allocate(cached, length - len(cached))
        if blocks is None:
            assert before < length
            assert self.pool.num_free == before
            return
        assert blocks[: len(cached)] == cached
        self.held.append(blocks)
        if publish:
            self.pool.publish(blocks, hashes)
            assert len(self.pool.find_cached(hashes)) == length

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.release(self.held.pop(index))

    @invariant()
    def held_and_free_are_all(self) -> None:
        in_use = {block for blocks in self.held for block in blocks}
        assert self.pool.num_free == SIZE - len(in_use)
        assert abs(self.pool.usage - len(in_use) / SIZE) < 1e-9

    @invariant()
    def fresh_blocks_belong_to_one(self) -> None:
        blocks = self.pool.allocate([], self.pool.num_free)
        assert blocks is not None
        assert not {*blocks} & {block for held in self.held for block in held}
        self.pool.release(blocks)

    def teardown(self) -> None:
        for blocks in self.held:
            self.pool.release(blocks)
        assert self.pool.num_free == SIZE


class CheckedOften(Histories):
    """Without the invariant that evicts all blocks, so that prefix hits occur."""

    def fresh_blocks_belong_to_one(self) -> None:
        pass


TestHistories = Histories.TestCase
TestCheckedOften = CheckedOften.TestCase


def test_eviction_starts_with_longest_free_and_last_block() -> None:
    pool, hashes = BlockPool(4), [hash_block(ROOT, [i]) for i in range(4)]
    blocks = pool.allocate([], 4)
    assert blocks
    pool.publish(blocks, hashes)
    pool.release(blocks)
    taken = pool.allocate([], 1)
    assert taken == [blocks[3]]
    assert pool.find_cached(hashes) == blocks[:3]


def test_block_hash_depends_on_all_earlier_tokens() -> None:
    assert hash_block(hash_block(ROOT, [1]), [2]) != hash_block(hash_block(ROOT, [3]), [2])
    assert hash_block(ROOT, [1, 2]) != hash_block(ROOT, [2, 1])


def test_wrong_byte_changes_signature() -> None:
    memory, digest = KvMemory(2, 256), hash_block(ROOT, [1])
    memory.record_computed([0, 1], [digest, digest])
    memory.flush([0, 1])
    memory.invalidate([0, 1])
    assert memory.signatures([0, 1]) == [digest, digest]
    for at in range(256):
        memory.record_computed([0], [digest])
        memory.flush([0])
        memory.buffer[at] ^= 1
        memory.invalidate([0])
        assert memory.signatures([0]) != [digest]
    memory.corrupt(1)
    memory.invalidate([1])
    assert memory.signatures([1]) != [digest]


def test_flush_does_not_overwrite_received_block() -> None:
    memory, mine, theirs = KvMemory(1, 256), hash_block(ROOT, [1]), hash_block(ROOT, [2])
    memory.record_computed([0], [mine])
    memory.buffer[0:256] = theirs * 8
    memory.invalidate([0])
    memory.flush([0])
    assert memory.signatures([0]) == [theirs]


def test_hash_blocks_equals_chained_hash_block() -> None:
    one = hash_block(ROOT, range(16))
    assert hash_blocks(ROOT, range(40), 16) == [one, hash_block(one, range(16, 32))]
    assert hash_blocks(ROOT, range(15), 16) == []
