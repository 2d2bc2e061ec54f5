"""Counts of the router's decisions, for the metrics. Recording one takes under a microsecond."""

from collections import Counter

from hpc_dynamo.histogram import Histogram
from hpc_dynamo.router.scheduling.selector import Selection

DECISION_BUCKETS_S = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3)


class DecisionStats:
    """Decisions since the start of the router."""

    def __init__(self) -> None:
        self.by_worker = Counter[tuple[int, str, str]]()  # (rank, role, policy)
        self.by_reason = Counter[str]()  # see Selection.reason
        self.prompt_blocks = self.overlap_blocks = 0
        self.seconds = Histogram(DECISION_BUCKETS_S)  # decision times

    def record(self, selection: Selection, blocks: int, seconds: float) -> None:
        """Count a decision on a prompt of `blocks` blocks that took `seconds`."""
        for worker in (target.worker for target in selection.targets):
            self.by_worker[worker.rank, str(worker.role), str(selection.policy)] += 1
        self.by_reason[selection.reason] += 1
        self.prompt_blocks += blocks
        self.overlap_blocks += min(selection.overlap_blocks, blocks)
        self.seconds.observe(seconds)
