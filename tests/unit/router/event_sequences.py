"""Reference model of the exact index, and random event sequences for both."""

from array import array
from dataclasses import dataclass, field
from hashlib import sha256

from hypothesis import strategies as st

from hpc_dynamo.router.index.exact import PrefixIndex
from hpc_dynamo.router.index.hashes import adapter_root, chained_hashes
from hpc_dynamo.router.index.lower_tiers import TierCounts
from hpc_dynamo.router.index.tiers import LOWER_TIERS, tier_of

LENGTH = 80  # blocks of a prompt: two and a half pages
BLOCK = 2  # tokens
ADAPTER = adapter_root("french")
Prefix = tuple[int, tuple[int, ...]]  # (adapter root, blocks); each block is a number


def tokens(blocks: tuple[int, ...]) -> bytes:
    return array("I", (t for b in blocks for t in (b, b + 100))).tobytes()


def hashes(prefix: Prefix) -> list[int]:
    return chained_hashes(tokens(prefix[1]), BLOCK, prefix[0])


@dataclass
class ReferenceIndex:
    """Keys of each worker with the prefixes that they identify."""

    capacity: int
    workers: dict[int, dict[str, dict[bytes, list[Prefix]]]] = field(default_factory=dict)

    def join(self, rank: int) -> None:
        self.workers[rank] = {}

    def store(
        self, rank: int, medium: str, keys: list[bytes], parent: bytes | None, new: list[Prefix]
    ) -> None:
        if rank not in self.workers:
            return
        tables = self.workers[rank]
        if parent is not None and not any(parent in table for table in tables.values()):
            return
        table = tables.setdefault(medium, {})
        ratio = len(new) // len(keys)
        more = sum(ratio for key in keys if key not in table)
        if more and self.copies() + more <= self.capacity:
            table.update((k, new[i * ratio : (i + 1) * ratio]) for i, k in enumerate(keys))

    def remove(self, rank: int, medium: str, keys: list[bytes]) -> None:
        for key in keys:
            self.workers.get(rank, {}).get(medium, {}).pop(key, None)

    def copies(self) -> int:
        return sum(
            len(new) for ts in self.workers.values() for t in ts.values() for new in t.values()
        )

    def held(self, rank: int) -> set[Prefix]:
        return {p for t in self.workers[rank].values() for prefixes in t.values() for p in prefixes}

    def overlaps(self, prompt: Prefix) -> dict[int, int]:
        found = {}
        for rank in self.workers:
            held, depth = self.held(rank), 0
            while depth < len(prompt[1]) and (prompt[0], prompt[1][: depth + 1]) in held:
                depth += 1
            if depth:
                found[rank] = depth
        return found

    def lower_tier_blocks(self, prompt: Prefix) -> TierCounts:
        found = TierCounts()
        for rank, depth in self.overlaps(prompt).items():
            tables = self.workers[rank].items()
            counts = [0] * len(LOWER_TIERS)
            for end in range(1, depth + 1):
                prefix = (prompt[0], prompt[1][:end])
                tiers = [tier_of(m) for m, t in tables if any(prefix in p for p in t.values())]
                if fastest := min(tiers):
                    counts[LOWER_TIERS.index(fastest)] += 1
            if any(counts):
                found[rank] = counts
        return found


@dataclass(frozen=True)
class Run:
    """Consecutive engine blocks of a prompt of zeros, then of ones from `turn` on."""

    turn: int
    start: int
    count: int
    ratio: int
    salt: int
    root: int

    def prompt(self) -> tuple[int, ...]:
        return (0,) * self.turn + (1,) * (LENGTH - self.turn)

    def upto(self, engine_blocks: int) -> Prefix:
        return self.root, self.prompt()[: engine_blocks * self.ratio]

    @property
    def last(self) -> int:
        return min(self.start + self.count, LENGTH // self.ratio)

    def key(self, engine_block: int) -> bytes:
        said = (self.upto(engine_block + 1), self.ratio, self.salt)
        return sha256(repr(said).encode()).digest()

    def keys(self) -> list[bytes]:
        return [self.key(i) for i in range(self.start, self.last)]

    def parent(self) -> bytes | None:
        return self.key(self.start - 1) if self.start else None

    def prefixes(self) -> list[Prefix]:
        cut = range(self.start * self.ratio + 1, self.last * self.ratio + 1)
        return [(self.root, self.prompt()[:n]) for n in cut]

    def tokens(self) -> bytes:
        return tokens(self.prompt()[self.start * self.ratio : self.last * self.ratio])


Step = tuple[str, int, str, Run]
KINDS = ["store"] * 6 + ["remove"] * 3 + ["join", "leave", "clear", "reset", "tidy"]


def several(*choices: int) -> st.SearchStrategy[list[int]]:
    """Draw the first choice only, or all: fully random values rarely coincide."""
    return st.sampled_from([list(choices[:1]), list(choices)])


@st.composite
def event_sequences(draw: st.DrawFn) -> list[Step]:
    ratios = draw(st.sampled_from([[1], [1], [4], [3], [1, 4]]))
    runs = st.builds(
        Run,
        turn=st.sampled_from(draw(several(LENGTH, 5, 40))),
        start=st.sampled_from([0, 0, 0, 1, 3, 4, 8, 31, 32, 33, 64]),
        count=st.sampled_from([1, 1, 2, 8, 31, 32, 33, LENGTH]),
        ratio=st.sampled_from(ratios),
        salt=st.sampled_from(draw(several(0, 1, 2))),
        root=st.sampled_from(draw(several(0, ADAPTER))),
    ).filter(lambda run: run.start < run.last)
    rank = st.sampled_from(draw(several(0, 1, 2)))
    medium = st.sampled_from(
        draw(st.sampled_from([["GPU"], ["GPU", "CPU"], ["GPU", "CPU_PINNED", "DISK"]]))
    )
    step = st.tuples(st.sampled_from(KINDS), rank, medium, runs)
    return draw(st.lists(step, min_size=1, max_size=40))


PROMPTS = [(r, Run(turn, 0, 0, 1, 0, r).prompt()) for r in (0, ADAPTER) for turn in (0, 5, 36, 80)]


def apply(
    index: PrefixIndex, reference: ReferenceIndex, step: str, rank: int, medium: str, run: Run
) -> None:
    keys, parent = run.keys(), run.parent()
    match step:
        case "store":
            size = BLOCK * run.ratio
            index.store(rank, keys, parent, run.tokens(), size, medium, run.root)
            reference.store(rank, medium, keys, parent, run.prefixes())
        case "remove":
            index.remove(rank, keys, medium)
            reference.remove(rank, medium, keys)
        case "join":
            index.add_worker(rank)
            reference.join(rank)
        case "leave":
            index.remove_worker(rank)
            reference.workers.pop(rank, None)
        case "clear" | "reset":
            (index.clear if step == "clear" else index.reset)(rank)
            if rank in reference.workers:
                reference.join(rank)
        case "tidy":
            index.sweep(run.count)


def replayed(steps: list[Step], capacity: int) -> tuple[PrefixIndex, ReferenceIndex]:
    index, reference = PrefixIndex(capacity, BLOCK), ReferenceIndex(capacity)
    for rank in (0, 1, 2):
        index.add_worker(rank)
        reference.join(rank)
    for step in steps:
        apply(index, reference, *step)
        for prompt in PROMPTS:
            found = index.overlaps(hashes(prompt))
            assert found == reference.overlaps(prompt)
            lower = index.lower_tier_blocks(hashes(prompt), found)
            assert lower == reference.lower_tier_blocks(prompt)
    return index, reference
