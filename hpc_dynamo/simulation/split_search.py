"""Searches the best split of prefill and decode workers by simulating each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hpc_dynamo.config import Role
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.result import RequestResult, SimulationResult
from hpc_dynamo.simulation.run import SimulatedJob, simulate

Workers = dict[Role, int]

COARSE_SPLITS = 16  # simulated before the search refines around the best


@dataclass(frozen=True)
class SplitResult:
    """A split and its result."""

    workers: Workers
    outcome: SimulationResult


def search_splits(
    job: SimulatedJob,
    workers: int,
    requests: Sequence[TraceRequest],
    on_start: Callable[[Workers], None],
    on_result: Callable[[RequestResult], None],
) -> list[SplitResult]:
    """Return the results, best goodput first, then lowest TTFT.

    Includes the aggregated topology. With many workers, some splits are tried first, then more
    around the best.
    """
    results = dict[int, SplitResult]()  # by prefill workers; 0: aggregated

    def run_split(prefill: int) -> None:
        if prefill in results:
            return
        split = {Role.prefill: prefill, Role.decode: workers - prefill}
        split = split if prefill else {Role.aggregated: workers}
        on_start(split)
        result = simulate(replace(job, workers=split), requests, on_result=on_result)
        results[prefill] = SplitResult(split, result)

    run_split(0)
    for prefill in _refine(workers, lambda: _best(results)):
        run_split(prefill)
    return sorted(results.values(), key=_rank)


def _refine(workers: int, best: Callable[[], int]) -> Iterator[int]:
    low, high = 1, workers - 1
    while low <= high:
        step = max(1, (high - low) // COARSE_SPLITS)
        yield from (*range(low, high, step), high)
        if step == 1:
            return
        low, high = max(1, best() - step), min(workers - 1, best() + step)


def _best(results: Mapping[int, SplitResult]) -> int:
    return min((prefill for prefill in results if prefill), key=lambda p: _rank(results[p]))


def _rank(split: SplitResult) -> tuple[float, float]:
    return -split.outcome.goodput_hz, sum(split.outcome.ttft_s())
