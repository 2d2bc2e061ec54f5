"""Event loop with virtual time: instead of waiting, the clock advances to the next timer."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NoPendingTimer(RuntimeError):
    """All tasks wait and no timer is left, so that virtual time cannot advance."""


class _VirtualSelector(selectors.SelectSelector):
    """Advances the clock instead of sleeping. Sockets of the loop are still polled."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NoPendingTimer("all tasks wait and no timer is left")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and does not advance while tasks compute.

    It is precise enough for some months of virtual time.
    """

    def __init__(self) -> None:
        self._selector = _VirtualSelector()
        super().__init__(self._selector)

    def time(self) -> float:
        return self._selector.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time, like asyncio.run. Raises NoPendingTimer."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
