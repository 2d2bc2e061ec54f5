"""Which split of prefill and decode workers a load wants: each is tried in virtual time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hpc_dynamo.config import Role
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.result import RequestResult, SimulationResult
from hpc_dynamo.simulation.run import SimulatedJob, simulate

Workers = dict[Role, int]

FIRST = 16  # splits that are tried before it is looked closer around the best


@dataclass(frozen=True)
class SplitResult:
    """A topology and what became of the load on it."""

    workers: Workers
    outcome: SimulationResult


def search_splits(
    job: SimulatedJob,
    workers: int,
    requests: Sequence[TraceRequest],
    begun: Callable[[Workers], None],
    ended: Callable[[RequestResult], None],
) -> list[SplitResult]:
    """The best first: by goodput, then by TTFT. All splits of few workers; of many some, then
    finer around the best."""
    tried = dict[int, SplitResult]()  # by prefill workers; 0: one role for all

    def attempt(prefill: int) -> None:
        if prefill in tried:
            return
        split = {Role.prefill: prefill, Role.decode: workers - prefill}
        split = split if prefill else {Role.aggregated: workers}
        begun(split)
        tried[prefill] = SplitResult(
            split, simulate(replace(job, workers=split), requests, ended=ended)
        )

    attempt(0)
    for prefill in _finer(workers, lambda: _best(tried)):
        attempt(prefill)
    return sorted(tried.values(), key=_rank)


def _finer(workers: int, best: Callable[[], int]) -> Iterator[int]:
    low, high = 1, workers - 1
    while low <= high:
        step = max(1, (high - low) // FIRST)
        yield from (*range(low, high, step), high)
        if step == 1:
            return
        low, high = max(1, best() - step), min(workers - 1, best() + step)


def _best(tried: Mapping[int, SplitResult]) -> int:
    return min((prefill for prefill in tried if prefill), key=lambda p: _rank(tried[p]))


def _rank(tried: SplitResult) -> tuple[float, float]:
    outcome = tried.outcome
    return -outcome.goodput_hz, sum(outcome.ttft_s())
