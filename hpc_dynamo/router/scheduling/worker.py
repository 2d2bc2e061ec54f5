"""A ready worker as the router sees it, and its data-parallel ranks."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.router.index.block_owners import TargetKey


class WorkerDemand(msgspec.Struct, frozen=True):
    """Load that one or several heads have placed on a routing target; see RoutingTarget."""

    prefill_tokens: int = 0
    blocks: int = 0
    active: int = 0


NO_LOAD = WorkerDemand()


@dataclass(eq=False, kw_only=True)
class RoutingTarget:
    """A prefix cache to which requests are routed: a worker, or one of its data-parallel ranks.

    Its load is what this router placed on it. `worker` is the worker itself if it is the target.
    """

    key: TargetKey = field(default=0, init=False)  # in KvState
    worker: "RoutedWorker" = field(init=False, repr=False)
    dp_rank: int | None = field(default=None, init=False)  # None: the worker is the target
    share: int = 1  # number of targets among which the limits of the worker are divided
    active: int = 0  # leases on it, also those whose prefill runs elsewhere
    prefill_tokens: int = 0  # prompt tokens not yet computed
    blocks: int = 0  # KV blocks of its leases
    last_lease_id: int = 0
    peer_load: WorkerDemand = field(default=NO_LOAD, init=False)  # not limited by admission

    @property
    def address(self) -> str:
        """Return the name of the target for peer heads, which may give the worker another rank."""
        url = self.worker.url
        return url if self.dp_rank is None else f"{url}#{self.dp_rank}"

    @property
    def queued_prefill_tokens(self) -> int:
        """Return the prompt tokens, of all heads, computed before a new prompt."""
        return self.prefill_tokens + self.peer_load.prefill_tokens

    def add_load(self, *, active: int = 0, prefill_tokens: int = 0, blocks: int = 0) -> None:
        """Add to its load, or subtract."""
        self.active += active
        self.prefill_tokens += prefill_tokens
        self.blocks += blocks


class RoutedRank(RoutingTarget):
    """A data-parallel rank with a prefix cache of its own, to which requests can be steered."""

    def __init__(self, worker: "RoutedWorker", dp_rank: int, ranks: int) -> None:
        super().__init__(share=ranks)
        self.worker, self.dp_rank, self.key = worker, dp_rank, (worker.rank, dp_rank)

    def add_load(self, *, active: int = 0, prefill_tokens: int = 0, blocks: int = 0) -> None:
        """Add to its load and to that of its worker."""
        super().add_load(active=active, prefill_tokens=prefill_tokens, blocks=blocks)
        self.worker.add_load(active=active, prefill_tokens=prefill_tokens, blocks=blocks)


@dataclass(eq=False)
class RoutedWorker(RoutingTarget):
    """One worker from ready to gone. Its load is the sum over its ranks, if it has any."""

    rank: int
    role: Role
    url: str
    served: int = 0
    busy_s: float = 0.0  # time with requests, over all restarts of the rank
    avoid_count: int = 0  # broken connections that have not expired
    ranks: int = 1  # data-parallel ranks to which requests can be steered
    targets: tuple[RoutingTarget, ...] = field(init=False, repr=False)
    running: int = 0  # leases that it works on now
    running_since: float = field(default=0.0, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    draining: bool = field(default=False, init=False)  # it gets no new requests
    pending_pulls: int = 0  # leases whose decode worker may still pull KV blocks from it
    # Set when `busy` becomes False.
    idle: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        self.worker, self.key = self, self.rank
        self.targets = (self,)
        if self.ranks > 1:
            self.targets = tuple(RoutedRank(self, i, self.ranks) for i in range(self.ranks))

    @property
    def busy(self) -> bool:
        """Return True while a lease needs the worker."""
        return self.active + self.pending_pulls > 0

    def update_idle(self) -> None:
        if not self.busy:
            self.idle.set()

    def avoid(self, seconds: float, on_expired: Callable[[], None]) -> None:
        """Give the worker no requests for this time, then call `on_expired`."""

        # A count, not a time stamp: the timers of an event loop and the clock differ slightly.
        def expire() -> None:
            self.avoid_count -= 1
            on_expired()

        self.avoid_count += 1
        asyncio.get_running_loop().call_later(seconds, expire)

    def start_request(self) -> None:
        if not self.running:
            self.running_since = self.clock()
        self.running += 1

    def finish_request(self) -> None:
        self.running, self.served = self.running - 1, self.served + 1
        if not self.running:
            self.busy_s += self.clock() - self.running_since
