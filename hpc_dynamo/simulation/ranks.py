"""A modelled worker of one or several data-parallel ranks, each an engine with its own cache."""

from collections.abc import Sequence

from hpc_dynamo.router import Target
from hpc_dynamo.simulation.worker import SimulatedWorker
from hpc_dynamo.timing_model import TimingModel


class RankedWorker:
    """The ranks of one worker. Figures are those of the whole worker."""

    def __init__(self, ranks: Sequence[SimulatedWorker]) -> None:
        self.ranks = ranks

    def selected(self, target: Target) -> SimulatedWorker:
        """Return the rank of a lease. If it names none, the engine selects the least loaded."""
        if target.dp_rank is not None:
            return self.ranks[target.dp_rank]
        return min(self.ranks, key=lambda rank: rank.running + rank.waiting)

    @property
    def running(self) -> int:
        return sum(rank.running for rank in self.ranks)

    @property
    def waiting(self) -> int:
        return sum(rank.waiting for rank in self.ranks)

    @property
    def kv_usage(self) -> float:
        return sum(rank.cache.usage for rank in self.ranks) / len(self.ranks)

    def set_timing(self, timing: TimingModel) -> None:
        for rank in self.ranks:
            rank.timing = timing

    def clear_cache(self) -> None:
        """Drop all blocks. No sequence may use the caches."""
        for rank in self.ranks:
            rank.cache.clear()
