"""Limits on the connections of a server.

A connection without a valid key cannot take the place of one with a key: the two are counted
separately. At a limit the oldest connection that nothing depends on is closed.
"""

import asyncio
import time
from collections import Counter
from typing import Protocol

from hpc_dynamo.descriptors import connection_budget

# Age at which a connection without a key may be closed: until then its request may be unread, or
# its client busy. Each one that is closed halves the age, so that a flood delays others less. Each
# client that sends a key increases it again.
MAX_GRACE_S, MIN_GRACE_S, GRACE_STEP_S = 2.0, 0.1, 0.01
# A slow event loop has read from a connection after this number of tries to add another one.
GRACE_TRIES = 5
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
        self._keys = keys
        self._anonymous = dict[Closable, int]()  # value of `_tries` when it was added
        self._tries = 0  # times that there was no room for a new connection
        self._idle = dict[Closable, None]()
        self._busy = dict[Closable, None]()
        self._grace_s = MAX_GRACE_S
        self.awaited = False  # a new connection waits for the end of another one
        self.rejections = Counter[str]()

    def __len__(self) -> int:
        return len(self._anonymous) + len(self._idle) + len(self._busy)

    def all(self) -> list[Closable]:
        return [*self._anonymous, *self._idle, *self._busy]

    def make_room(self) -> bool:
        """Return True if a connection may be added. At a limit, another one is closed for it."""
        if self._full:
            self._close_one()
        self.awaited = self._full
        self._tries += self.awaited
        return not self.awaited

    @property
    def _full(self) -> bool:
        """Connections without a key have a limit of their own: each may hold a long head."""
        return len(self) >= self.limit or self._has_most_anonymous

    @property
    def _has_most_anonymous(self) -> bool:
        return self._keys and len(self._anonymous) >= MAX_ANONYMOUS

    def add(self, connection: Closable) -> None:
        """Add a new connection, after `make_room`."""
        self._anonymous[connection] = self._tries

    def replace(self, connection: Closable, by: Closable) -> None:
        """Add a connection in the place of another one."""
        self.discard(connection)
        self.add(by)

    def set_busy(self, connection: Closable) -> None:
        """Note that a connection has sent a request with a key."""
        if connection in self._anonymous:
            del self._anonymous[connection]
            self._grace_s = min(MAX_GRACE_S, self._grace_s + GRACE_STEP_S)
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

    def _close_one(self) -> None:
        """Close an idle connection, or one without a key if they are too many."""
        crowded = len(self._anonymous) > self.anonymous_limit or self._has_most_anonymous
        if self._idle and not crowded:
            self._close(next(iter(self._idle)))
        elif victim := self._oldest_anonymous():
            self._grace_s = max(MIN_GRACE_S, self._grace_s / 2)
            self._close(victim)

    def _oldest_anonymous(self) -> Closable | None:
        old_s, old_tries = time.monotonic() - self._grace_s, self._tries - GRACE_TRIES
        anonymous = self._anonymous.items()
        old = (c for c, tries in anonymous if tries <= old_tries and c.opened_at < old_s)
        return next((c for c in old if not c.serving), None)

    def _close(self, victim: Closable) -> None:
        self.rejections["connections"] += 1
        self.discard(victim)
        victim.abort()
