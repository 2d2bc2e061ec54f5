"""Detection of peers that have become silent."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_GAP_S = 3.0  # a process that checks every second and runs is never this late


class SilenceWatch(Generic[K]):
    """Time since the last message of each peer. Call `check` every second.

    The process itself may have been suspended (`scontrol suspend`, SIGSTOP), and then its peers
    seem silent. So after a gap between two checks all peers get the full time again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard_at = dict[K, float]()
        self._checked_at = clock()

    def heard(self, peer: K) -> None:
        """Note a message of a peer, which is watched from now on."""
        self._heard_at[peer] = self._clock()

    def forget(self, peer: K) -> None:
        self._heard_at.pop(peer, None)

    def check(self) -> dict[K, float]:
        """Return the time in seconds for which each peer has been silent."""
        now = self._clock()
        if now - self._checked_at > MAX_GAP_S:
            self._heard_at = dict.fromkeys(self._heard_at, now)
        self._checked_at = now
        return {peer: now - at for peer, at in self._heard_at.items()}
