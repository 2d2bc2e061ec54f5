"""What the router decided so far, for the metrics. Counted in under a microsecond each."""

from collections import Counter

from hpc_dynamo.histogram import Histogram
from hpc_dynamo.router.scheduling.selector import Choice

BOUNDS_S = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3)


class Decisions:
    """Since the start of the router."""

    def __init__(self) -> None:
        self.by = Counter[tuple[int, str, str]]()  # rank, its part, policy
        self.why = Counter[str]()  # see Choice.why
        self.prompt_blocks = self.overlap_blocks = 0
        self.seconds = Histogram(BOUNDS_S)  # decision times

    def count(self, choice: Choice, blocks: int, seconds: float) -> None:
        """One decision on a prompt of so many blocks."""
        for member in choice.workers:
            self.by[member.rank, str(member.role), str(choice.policy)] += 1
        self.why[choice.why] += 1
        self.prompt_blocks += blocks
        self.overlap_blocks += min(choice.overlap, blocks)
        self.seconds.observe(seconds)
