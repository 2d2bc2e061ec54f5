"""A ready worker as the router sees it."""

import time
from dataclasses import dataclass, field

from hpc_dynamo.config import Role


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
    working: int = 0  # of the leases, those that it works on now
    since: float = field(default=0.0, repr=False)

    def begin(self) -> None:
        if not self.working:
            self.since = time.monotonic()
        self.working += 1

    def end(self) -> None:
        self.working -= 1
        if not self.working:
            self.busy_s += time.monotonic() - self.since
