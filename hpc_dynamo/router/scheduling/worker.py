"""A ready worker as the router sees it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hpc_dynamo.config import Role


class WorkerDemand(msgspec.Struct, frozen=True):
    """Load that one or several heads have placed on a worker; see RoutedWorker."""

    prefill_tokens: int = 0
    blocks: int = 0
    active: int = 0


NO_LOAD = WorkerDemand()


@dataclass(eq=False)
class RoutedWorker:
    """One worker from ready to gone. Its load is what this router placed on it."""

    rank: int
    role: Role
    url: str
    active: int = 0  # leases on it, also those whose prefill runs elsewhere
    served: int = 0
    prefill_tokens: int = 0  # prompt tokens not yet computed
    blocks: int = 0  # KV blocks of its leases
    busy_s: float = 0.0  # time with requests, over all restarts of the rank
    avoid_count: int = 0  # broken connections that have not expired
    last_lease_id: int = 0
    peer_load: WorkerDemand = field(default=NO_LOAD, init=False)  # not limited by admission
    running: int = 0  # leases that it works on now
    running_since: float = field(default=0.0, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    draining: bool = field(default=False, init=False)  # it gets no new requests
    pending_pulls: int = 0  # leases whose decode worker may still pull KV blocks from it
    # Set when `busy` becomes False.
    idle: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    @property
    def busy(self) -> bool:
        """Return True while a lease needs the worker."""
        return self.active + self.pending_pulls > 0

    @property
    def queued_prefill_tokens(self) -> int:
        """Return the prompt tokens, of all heads, computed before a new prompt."""
        return self.prefill_tokens + self.peer_load.prefill_tokens

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
        self.running -= 1
        if not self.running:
            self.busy_s += self.clock() - self.running_since
