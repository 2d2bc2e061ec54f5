"""Limits on the connections of a server.

A connection without a valid key cannot take the place of one with a key: the two are counted
separately. At a limit the oldest connection that nothing depends on is closed.
"""

import asyncio
import time
from collections import Counter
from typing import Protocol

from hpc_dynamo.descriptors import connection_budget

# Age at which a connection without a key may be closed: until then its request may be unread.
# If the server is full, a younger one is closed too: a flood must not keep all others out.
GRACE_S = 0.25
SERVER_SHARE = 0.5  # share of a process's connections; the rest go to engines
ANONYMOUS_SHARE = 0.25  # share of the server's connections
MAX_ANONYMOUS = 1024


class Closable(Protocol):
    """Connection of a client."""

    opened_at: float
    closed: "asyncio.Future[None]"

    @property
    def serving(self) -> bool: ...

    def abort(self) -> None: ...

    def close_when_idle(self) -> None: ...

    def check_timeouts(self, now: float) -> None: ...


class ConnectionTable:
    """Open connections of a server: without a key (the oldest first), idle, and busy ones.

    A new connection has no key. `rejections` counts closed connections and rejected requests.
    """

    def __init__(self, limit: int | None, *, keys: bool) -> None:
        """`limit`: None for a share of RLIMIT_NOFILE. `keys`: clients need a key."""
        self.limit = limit or max(1, int(connection_budget() * SERVER_SHARE))
        share = max(1, min(MAX_ANONYMOUS, int(self.limit * ANONYMOUS_SHARE)))
        self.anonymous_limit = share if keys else self.limit
        self._anonymous = dict[Closable, None]()
        self._idle = dict[Closable, None]()
        self._busy = dict[Closable, None]()
        self.rejections = Counter[str]()

    def __len__(self) -> int:
        return len(self._anonymous) + len(self._idle) + len(self._busy)

    def all(self) -> list[Closable]:
        return [*self._anonymous, *self._idle, *self._busy]

    def add(self, connection: Closable) -> bool:
        """Add a new connection, in place of another one at a limit.

        Return False if no other one can be closed; the caller then closes the new one.
        """
        crowded = len(self._anonymous) >= self.anonymous_limit
        if crowded:
            self._close(self._oldest_anonymous())
        if len(self) >= self.limit:
            idle = None if crowded else next(iter(self._idle), None)
            victim = idle or self._oldest_anonymous(0.0)
            if not victim:
                self.rejections["connections"] += 1
                return False
            self._close(victim)
        self._anonymous[connection] = None
        return True

    def set_busy(self, connection: Closable) -> None:
        """Note that a connection has sent a request with a key."""
        self._anonymous.pop(connection, None)
        self._idle.pop(connection, None)
        self._busy[connection] = None

    def set_idle(self, connection: Closable) -> None:
        """Note that the last request of a connection is complete."""
        if connection in self._busy:
            del self._busy[connection]
            self._idle[connection] = None

    def discard(self, connection: Closable) -> None:
        for group in (self._anonymous, self._idle, self._busy):
            group.pop(connection, None)

    def has_key(self, connection: Closable) -> bool:
        return connection not in self._anonymous

    def _oldest_anonymous(self, min_age_s: float = GRACE_S) -> Closable | None:
        old = time.monotonic() - min_age_s
        return next((c for c in self._anonymous if c.opened_at < old and not c.serving), None)

    def _close(self, victim: Closable | None) -> None:
        if victim:
            self.rejections["connections"] += 1
            self.discard(victim)
            victim.abort()
