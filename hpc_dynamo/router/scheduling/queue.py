"""Queue of requests that wait for a worker, ordered by priority and then by arrival."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from hpc_dynamo.router.scheduling.lease import Lease, RoutingRequest


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue. `lease` resolves when workers are granted, or raises."""

    request: RoutingRequest
    order: tuple[int, int]
    enqueued_at: float
    lease: asyncio.Future[Lease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    timer: asyncio.TimerHandle | None = None

    def reject(self, error: Exception) -> None:
        # The caller may have cancelled it in the same iteration of the event loop.
        if not self.lease.cancelled():
            self.lease.set_exception(error)


def _order(queued: QueuedRequest) -> tuple[int, int]:
    return queued.order


class RequestQueue:
    """Sorted list of requests, the next one first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries, self._arrivals = list[QueuedRequest](), count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[QueuedRequest]:
        """Iterate over a snapshot, so that entries may be removed meanwhile."""
        return iter(tuple(self._entries))

    def __contains__(self, queued: QueuedRequest) -> bool:
        at = bisect_left(self._entries, queued.order, key=_order)
        return at < len(self._entries) and self._entries[at] is queued

    def push(self, request: RoutingRequest) -> QueuedRequest:
        order = (-request.hints.priority, next(self._arrivals))
        queued = QueuedRequest(request, order, self._clock())
        insort(self._entries, queued, key=_order)
        return queued

    def remove(self, queued: QueuedRequest) -> None:
        del self._entries[bisect_left(self._entries, queued.order, key=_order)]
        if queued.timer:
            queued.timer.cancel()

    def last_with_lower_priority(self, request: RoutingRequest) -> QueuedRequest | None:
        """Return the last entry if its priority is lower than that of `request`."""
        last = self._entries[-1] if self._entries else None
        return last if last and last.request.hints.priority < request.hints.priority else None
