"""A ready worker as the router sees it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hpc_dynamo.config import Role


class WorkerDemand(msgspec.Struct, frozen=True):
    """What requests weigh on a worker; see Member."""

    prefill_tokens: int = 0
    blocks: int = 0
    active: int = 0


NO_LOAD = WorkerDemand()


@dataclass(eq=False)
class RoutedWorker:
    """One life of a worker. Its load is what we gave it, not what it says."""

    rank: int
    role: Role
    url: str
    active: int = 0  # leases on it, also those whose prefill is under way elsewhere
    served: int = 0
    prefill_tokens: int = 0  # promised and not computed yet
    blocks: int = 0  # of KV cache that our requests on it hold
    busy_s: float = 0.0  # time with work of ours, over all lives of the rank
    avoid_count: int = 0  # broken connections that are not forgiven yet
    last_lease_id: int = 0  # number of the last lease on it
    peer_load: WorkerDemand = field(
        default=NO_LOAD, init=False
    )  # of other heads; no limit counts it
    running: int = 0  # of the leases, those that it works on now
    running_since: float = field(default=0.0, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    draining: bool = field(default=False, init=False)  # it is given nothing new
    pending_pulls: int = 0  # leases whose decode worker may still pull blocks from it
    idle: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)  # see `busy`

    @property
    def busy(self) -> bool:
        """Whether a lease still needs it. `rest` is set when none does any more."""
        return self.active + self.pending_pulls > 0

    def update_idle(self) -> None:
        if not self.busy:
            self.idle.set()

    def avoid(self, seconds: float, then: Callable[[], None]) -> None:
        """Counted, not timed: a loop's timers and the clock differ by a little."""

        def trust() -> None:
            self.avoid_count -= 1
            then()

        self.avoid_count += 1
        asyncio.get_running_loop().call_later(seconds, trust)

    @property
    def queued_prefill_tokens(self) -> int:
        """Of prompts, whoever sent them, that are computed before a next one."""
        return self.prefill_tokens + self.peer_load.prefill_tokens

    def start_request(self) -> None:
        if not self.running:
            self.running_since = self.clock()
        self.running += 1

    def finish_request(self) -> None:
        self.running -= 1
        if not self.running:
            self.busy_s += self.clock() - self.running_since
