"""An event loop whose time is virtual: where asyncio would wait, the clock jumps."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NoPendingTimer(RuntimeError):
    """Everybody waits and no timer is left: in virtual time nothing can ever happen."""


class _Jumping(selectors.SelectSelector):
    """Sleeps by moving the clock. Sockets of the loop itself are still looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NoPendingTimer("everybody waits and no timer is left")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and is the same after any amount of computing. It is good for some
    months: then a double no longer tells apart what asyncio does."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, in virtual time. Raises Stuck."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
