"""The approximate index: prompts sent to workers, for a limited time."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_dynamo.router.index.approximate import ApproximateIndex

TTL_S = 10.0
Prompt = tuple[int, ...]


def hashes(prompt: Prompt) -> list[int]:
    """Return chained hashes of a prompt."""
    return [hash(prompt[: n + 1]) & (1 << 60) - 1 for n in range(len(prompt))]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def index_of(*ranks: int, capacity: int = 100, clock: Clock | None = None) -> ApproximateIndex:
    index = ApproximateIndex(capacity, TTL_S, clock or Clock())
    for rank in ranks:
        index.add_worker(rank)
    return index


def test_overlaps_count_blocks_from_the_start() -> None:
    index = index_of(0, 1, 2)
    index.add(0, hashes((1, 2, 3)))
    index.add(1, hashes((1, 2)))
    index.add(2, hashes((9,)))
    assert index.overlaps(hashes((1, 2, 3, 4))) == {0: 3, 1: 2}
    assert index.overlaps(hashes((1, 8, 3))) == {0: 1, 1: 1}
    assert index.overlaps(hashes((7, 1))) == {}
    assert index.overlaps([]) == {}
    index.add(7, hashes((1, 2, 3)))  # an unknown worker
    assert index.overlaps(hashes((1, 2, 3))) == {0: 3, 1: 2}


def test_removed_worker_has_no_blocks_also_after_it_is_added_again() -> None:
    index, prompt = index_of(0, 1), hashes((1, 2))
    index.add(0, prompt)
    index.add(1, prompt[:1])
    index.remove_worker(0)
    index.remove_worker(0)
    assert index.overlaps(prompt) == {1: 1}
    index.add_worker(0)
    assert index.overlaps(prompt) == {1: 1}
    index.add(0, prompt)
    assert index.overlaps(prompt) == {0: 2, 1: 1}
    index.add_worker(0)  # a rank that was not removed before
    assert index.overlaps(prompt) == {1: 1}


def test_full_generation_rotates_and_keeps_used_prompts() -> None:
    index, used = index_of(0, capacity=12), hashes((1, 2, 3))
    for other in range(10, 20):
        index.add(0, used)
        index.add(0, hashes((other, other)))
        assert len(index) <= 12
        assert index.overlaps(used) == {0: 3}
        assert index.overlaps(hashes((other, other))) == {0: 2}
    assert index.overlaps(hashes((10, 10))) == {}


def test_prompt_beyond_the_capacity_keeps_its_start() -> None:
    index, long = index_of(0, capacity=10), hashes(tuple(range(20)))
    index.add(0, long)
    assert index.overlaps(long) == {0: 5}


def test_expected_blocks_expire() -> None:
    clock = Clock()
    index, prompt = index_of(0, clock=clock), hashes((1, 2))
    for _ in range(20):
        clock.now += 0.7  # at any age of the generations
        index.add(0, prompt)
        clock.now += TTL_S / 2 - 0.01
        assert index.overlaps(prompt) == {0: 2}
        clock.now += TTL_S / 2 + 0.02
        assert index.overlaps(prompt) == {}
        assert len(index) == 0


def test_thousand_restarts_keep_workers_separate() -> None:
    clock = Clock()
    index, prompt = index_of(0, clock=clock, capacity=1000), hashes((1, 2))
    for _ in range(1000):
        index.add_worker(0)
        index.add(0, prompt)
        assert index.overlaps(prompt) == {0: 2}
        clock.now += TTL_S / 3


@dataclass
class ReferenceIndex:
    """Reference model: two generations of one set per worker."""

    half: int
    clock: Clock
    young: dict[int, set[Prompt]] = field(default_factory=dict)
    old: dict[int, set[Prompt]] = field(default_factory=dict)
    entered: int = 0
    since: float = 0.0

    def join(self, rank: int) -> None:
        self.young[rank], self.old[rank] = set(), set()

    def leave(self, rank: int) -> None:
        self.young.pop(rank, None)
        self.old.pop(rank, None)

    def turn(self, now: float) -> None:
        self.old, self.young = self.young, {rank: set() for rank in self.young}
        self.entered, self.since = 0, now

    def age(self) -> None:
        turns = 0
        while self.clock.now - self.since >= TTL_S / 2 and turns < 2:
            self.turn(self.since + TTL_S / 2)
            turns += 1
        if self.clock.now - self.since >= TTL_S / 2:
            self.since = self.clock.now

    def add(self, rank: int, prompt: Prompt) -> None:
        if rank not in self.young:
            return
        self.age()
        prefixes = {prompt[: n + 1] for n in range(min(len(prompt), self.half))}
        if self.entered + len(prefixes - self.young[rank]) > self.half:
            self.turn(self.clock.now)
        self.entered += len(prefixes - self.young[rank])
        self.young[rank] |= prefixes

    def overlaps(self, prompt: Prompt) -> dict[int, int]:
        self.age()
        found = {}
        for rank in self.young:
            depths = [self.depth(gen[rank], prompt) for gen in (self.young, self.old)]
            if max(depths):
                found[rank] = max(depths)
        return found

    @staticmethod
    def depth(held: set[Prompt], prompt: Prompt) -> int:
        return next((n for n in range(len(prompt)) if prompt[: n + 1] not in held), len(prompt))


PROMPTS = st.lists(st.integers(0, 1), max_size=8).map(tuple)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "wait", "add", "add", "add", "add"]),
        st.integers(0, 3),
        PROMPTS,
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.lists(PROMPTS, min_size=3, max_size=3), st.sampled_from([1, 6, 20, 1000]))
def test_overlaps_equal_a_model_of_plain_sets(
    steps: list[tuple[str, int, Prompt]], request: list[Prompt], capacity: int
) -> None:
    clock = Clock()
    index, reference = (
        index_of(0, 1, capacity=capacity, clock=clock),
        ReferenceIndex(max(1, capacity // 2), clock),
    )
    for rank in (0, 1):
        reference.join(rank)
    for step, rank, prompt in steps:
        match step:
            case "join":
                index.add_worker(rank)
                reference.join(rank)
            case "leave":
                index.remove_worker(rank)
                reference.leave(rank)
            case "add":
                index.add(rank, hashes(prompt))
                reference.add(rank, prompt)
            case _:
                clock.now += (0.5, 2.5, 5.0, 30.0)[rank]
        for each in (prompt, *request):
            assert index.overlaps(hashes(each)) == reference.overlaps(each)
        assert len(index) <= max(2, capacity)


def test_worker_bit_in_a_generation_is_not_reused() -> None:
    clock = Clock()
    index, prompt = index_of(0, 1, clock=clock), hashes((1, 2))
    index.add(0, prompt)
    index.add(1, prompt)
    index.remove_worker(0)
    clock.now = TTL_S / 2
    assert index.overlaps(prompt) == {1: 2}
    index.add_worker(2)
    assert index.overlaps(prompt) == {1: 2}
