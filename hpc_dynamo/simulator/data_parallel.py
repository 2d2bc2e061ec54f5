"""Data-parallel ranks in one process: each has a scheduler, a KV cache and metrics of its own."""

import asyncio
from collections.abc import Mapping, Sequence

from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.generation_request import GenerationRequest
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import SequenceGroup
from hpc_dynamo.simulator.step import SchedulerLimits
from hpc_dynamo.timing_model import TimingModel

DP_RANK_HEADER = "x-data-parallel-rank"  # as in vLLM and SGLang


class DataParallelScheduler(Scheduler):
    """Rank 0 with `others`. A group runs on its `dp_rank`, else on the least loaded rank."""

    def __init__(
        self,
        limits: SchedulerLimits,
        timing: TimingModel,
        model: SimulatedModel,
        metrics: SimulatorMetrics,
        others: Sequence[Scheduler],
    ) -> None:
        super().__init__(limits, timing, model, metrics)
        self._others = others

    @property
    def ranks(self) -> Sequence[Scheduler]:
        return (self, *self._others)

    def submit(self, group: SequenceGroup, n: int = 1) -> None:
        """Queue a group on its rank, see Scheduler.submit."""
        ranks = self.ranks
        if group.dp_rank is None:
            loads = [rank.num_unfinished for rank in ranks]
            group.dp_rank = loads.index(min(loads))
        if group.dp_rank:
            ranks[group.dp_rank].submit(group, n)
        else:
            super().submit(group, n)

    def abort(self, group: SequenceGroup) -> None:
        if group.dp_rank:
            self._others[group.dp_rank - 1].abort(group)
        else:
            super().abort(group)

    def hang(self) -> None:
        super().hang()
        for rank in self._others:
            rank.hang()

    def reset_cache(self) -> bool:
        return all([super().reset_cache(), *(rank.reset_cache() for rank in self._others)])

    def update_gauges(self) -> None:
        super().update_gauges()
        for rank in self._others:
            rank.update_gauges()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for rank in self._others:
                tasks.create_task(rank.run())
            await super().run()


def requested_rank(
    headers: Mapping[str, str], body: GenerationRequest, *, sglang: bool
) -> int | None:
    """Return the rank that a request names, if any. Raises RequestRejected.

    SGLang also has a field in the body, which the header overrides. vLLM ignores a header that is
    not a number.
    """
    named = headers.get(DP_RANK_HEADER)
    if named is None:
        return body.routed_dp_rank if sglang else None
    try:
        return int(named)
    except ValueError:
        if sglang:
            what = f"Invalid X-Data-Parallel-Rank header: must be an integer, got '{named}'"
            raise RequestRejected(what) from None
        return None


def set_rank(groups: Sequence[SequenceGroup], dp_rank: int | None, ranks: int) -> None:
    """Set the rank of all prompts of a request, if it names one. Raises RequestRejected."""
    if dp_rank is None:
        return
    if not 0 <= dp_rank < ranks:
        raise RequestRejected(f"data_parallel_rank {dp_rank} is out of range [0, {ranks}).")
    for group in groups:
        group.dp_rank = dp_rank
