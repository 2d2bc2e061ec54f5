"""Which split of prefill and decode workers a load wants: each is tried in virtual time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hpc_dynamo.config import Role
from hpc_dynamo.simulation.job import Job, simulate
from hpc_dynamo.simulation.load import Request
from hpc_dynamo.simulation.outcome import Outcome, Seen

Workers = dict[Role, int]


@dataclass(frozen=True)
class Tried:
    """A topology and what became of the load on it."""

    workers: Workers
    outcome: Outcome


def splits(workers: int) -> Iterator[Workers]:
    """All ways to use so many: one role for all, then each split, prefill first."""
    yield {Role.aggregated: workers}
    for prefill in range(1, workers):
        yield {Role.prefill: prefill, Role.decode: workers - prefill}


def search(
    job: Job,
    workers: int,
    requests: Sequence[Request],
    begun: Callable[[Workers], None],
    ended: Callable[[Seen], None],
) -> list[Tried]:
    """All splits, the best first: by goodput, then by the mean TTFT."""
    tried = list[Tried]()
    for split in splits(workers):
        begun(split)
        outcome = simulate(replace(job, workers=split), requests, ended=ended)
        tried.append(Tried(split, outcome))
    return sorted(tried, key=lambda t: (-t.outcome.goodput_hz, sum(t.outcome.ttft_s())))
