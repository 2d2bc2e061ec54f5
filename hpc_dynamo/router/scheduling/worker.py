"""A ready worker as the router sees it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hpc_dynamo.config import Role


class Load(msgspec.Struct, frozen=True):
    """What requests weigh on a worker; see Member."""

    prefill_tokens: int = 0
    blocks: int = 0
    active: int = 0


NONE = Load()


@dataclass(eq=False)
class Member:
    """One life of a worker. Its load is what we gave it, not what it says."""

    rank: int
    role: Role
    url: str
    active: int = 0  # leases on it, also those whose prefill is under way elsewhere
    served: int = 0
    prefill_tokens: int = 0  # promised and not computed yet
    blocks: int = 0  # of KV cache that our requests on it hold
    busy_s: float = 0.0  # time with work of ours, over all lives of the rank
    avoided: int = 0  # broken connections that are not forgiven yet
    turn: int = 0  # number of the last lease on it
    others: Load = field(default=NONE, init=False)  # of other heads; no limit counts it
    working: int = 0  # of the leases, those that it works on now
    since: float = field(default=0.0, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    aside: bool = field(default=False, init=False)  # it is given nothing new
    lent: int = 0  # leases whose decode worker may still pull blocks from it
    rest: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)  # see `busy`

    @property
    def busy(self) -> bool:
        """Whether a lease still needs it. `rest` is set when none does any more."""
        return self.active + self.lent > 0

    def settle(self) -> None:
        if not self.busy:
            self.rest.set()

    def avoid(self, seconds: float, then: Callable[[], None]) -> None:
        """Counted, not timed: a loop's timers and the clock differ by a little."""

        def trust() -> None:
            self.avoided -= 1
            then()

        self.avoided += 1
        asyncio.get_running_loop().call_later(seconds, trust)

    @property
    def ahead_tokens(self) -> int:
        """Of prompts, whoever sent them, that are computed before a next one."""
        return self.prefill_tokens + self.others.prefill_tokens

    def begin(self) -> None:
        if not self.working:
            self.since = self.clock()
        self.working += 1

    def end(self) -> None:
        self.working -= 1
        if not self.working:
            self.busy_s += self.clock() - self.since
