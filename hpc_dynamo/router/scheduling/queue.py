"""Asks that wait: by priority, then as they came."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from hpc_dynamo.router.scheduling.lease import Ask, Lease


@dataclass(eq=False)
class Waiting:
    """A place in line; `granted` becomes the lease, or raises."""

    ask: Ask
    order: tuple[int, int]
    since: float
    granted: asyncio.Future[Lease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    timer: asyncio.TimerHandle | None = None

    def refuse(self, error: Exception) -> None:
        """Who waited may have given up in the same turn."""
        if not self.granted.cancelled():
            self.granted.set_exception(error)


def _order(waiting: Waiting) -> tuple[int, int]:
    return waiting.order


class Line:
    """Sorted; a place is left by whoever gets a lease, gives up or is refused."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places, self._arrivals = list[Waiting](), count()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Waiting]:
        """Those that wait now, also while some of them leave."""
        return iter(tuple(self._places))

    def __contains__(self, waiting: Waiting) -> bool:
        at = bisect_left(self._places, waiting.order, key=_order)
        return at < len(self._places) and self._places[at] is waiting

    def join(self, ask: Ask) -> Waiting:
        waiting = Waiting(ask, (-ask.wish.priority, next(self._arrivals)), self._clock())
        insort(self._places, waiting, key=_order)
        return waiting

    def leave(self, waiting: Waiting) -> None:
        del self._places[bisect_left(self._places, waiting.order, key=_order)]
        if waiting.timer:
            waiting.timer.cancel()

    def yields_to(self, ask: Ask) -> Waiting | None:
        """The last in line, if it counts for less than `ask`."""
        last = self._places[-1] if self._places else None
        return last if last and last.ask.wish.priority < ask.wish.priority else None
