"""Queue of requests that wait for a worker, ordered by priority and then by arrival."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from hpc_dynamo.config import Role
from hpc_dynamo.router.scheduling.lease import Lease, RoutingRequest

Roles = tuple[Role, ...]

MAX_WORKER_SETS = 32  # different sets of workers that queued requests may name


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that wait for the same workers: if one of them has no room, the others have none."""

    roles: Roles
    workers: frozenset[int] = frozenset()
    exclude: frozenset[int] = frozenset()

    @classmethod
    def of(cls, request: RoutingRequest, roles: Roles) -> "Group":
        return cls(roles, frozenset(request.hints.workers), frozenset(request.exclude))

    @property
    def any_worker(self) -> bool:
        return not (self.workers or self.exclude)


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue. `lease` resolves when workers are granted, or raises."""

    request: RoutingRequest
    group: Group
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
    """Sorted list of requests, the next one first, and the same by group."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries, self._arrivals = list[QueuedRequest](), count()
        self._groups = dict[Group, list[QueuedRequest]]()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, queued: QueuedRequest) -> bool:
        at = bisect_left(self._entries, queued.order, key=_order)
        return at < len(self._entries) and self._entries[at] is queued

    def push(self, request: RoutingRequest, roles: Roles) -> QueuedRequest:
        order = (-request.hints.priority, next(self._arrivals))
        queued = QueuedRequest(request, Group.of(request, roles), order, self._clock())
        insort(self._entries, queued, key=_order)
        insort(self._groups.setdefault(queued.group, []), queued, key=_order)
        return queued

    def remove(self, queued: QueuedRequest) -> None:
        """Take a request out, and end its timer."""
        entries = self._groups[queued.group]
        for requests in (self._entries, entries):
            del requests[bisect_left(requests, queued.order, key=_order)]
        if not entries:
            del self._groups[queued.group]
        if queued.timer:
            queued.timer.cancel()

    def blocks(self, request: RoutingRequest, roles: Roles) -> bool:
        """Return True if requests wait that this one must not overtake."""
        return Group(roles) in self._groups or Group.of(request, roles) in self._groups

    def has_room_for(self, request: RoutingRequest, roles: Roles) -> bool:
        """Return False for a request that names one more set of workers than may be queued.

        Each set costs an attempt whenever a worker may have room.
        """
        if not request.hints.workers or Group.of(request, roles) in self._groups:
            return True
        return sum(bool(group.workers) for group in self._groups) < MAX_WORKER_SETS

    def offer(self, accept: Callable[[QueuedRequest], bool]) -> None:
        """Offer requests to `accept` in order, which may remove the request.

        After one that it returns False for, those of its group wait; if that request accepts any
        worker, all with the same roles wait. The time grows with the groups, not with the queue.
        """
        heads = [(entries[0].order, entries[0]) for entries in self._groups.values()]
        heapify(heads)
        rest = {group: iter(tuple(entries[1:])) for group, entries in self._groups.items()}
        blocked = set[Roles]()
        while heads:
            _, queued = heappop(heads)
            group = queued.group
            if group.roles in blocked:
                continue
            if not accept(queued):
                if group.any_worker:
                    blocked.add(group.roles)
            elif following := next(rest[group], None):
                heappush(heads, (following.order, following))

    def last_with_lower_priority(self, request: RoutingRequest) -> QueuedRequest | None:
        """Return the last entry if its priority is lower than that of `request`."""
        last = self._entries[-1] if self._entries else None
        return last if last and last.request.hints.priority < request.hints.priority else None
