"""Asks that wait: by priority, then as they came."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from hpc_dynamo.router.scheduling.lease import Lease, RoutingRequest


@dataclass(eq=False)
class QueuedRequest:
    """A place in line; `granted` becomes the lease, or raises."""

    request: RoutingRequest
    order: tuple[int, int]
    enqueued_at: float
    lease: asyncio.Future[Lease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    timer: asyncio.TimerHandle | None = None

    def reject(self, error: Exception) -> None:
        """Who waited may have given up in the same turn."""
        if not self.lease.cancelled():
            self.lease.set_exception(error)


def _order(waiting: QueuedRequest) -> tuple[int, int]:
    return waiting.order


class RequestQueue:
    """Sorted; a place is left by whoever gets a lease, gives up or is refused."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries, self._arrivals = list[QueuedRequest](), count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[QueuedRequest]:
        """Those that wait now, also while some of them leave."""
        return iter(tuple(self._entries))

    def __contains__(self, waiting: QueuedRequest) -> bool:
        at = bisect_left(self._entries, waiting.order, key=_order)
        return at < len(self._entries) and self._entries[at] is waiting

    def push(self, ask: RoutingRequest) -> QueuedRequest:
        waiting = QueuedRequest(ask, (-ask.hints.priority, next(self._arrivals)), self._clock())
        insort(self._entries, waiting, key=_order)
        return waiting

    def remove(self, waiting: QueuedRequest) -> None:
        del self._entries[bisect_left(self._entries, waiting.order, key=_order)]
        if waiting.timer:
            waiting.timer.cancel()

    def last_with_lower_priority(self, ask: RoutingRequest) -> QueuedRequest | None:
        """The last in line, if it counts for less than `ask`."""
        last = self._entries[-1] if self._entries else None
        return last if last and last.request.hints.priority < ask.hints.priority else None
