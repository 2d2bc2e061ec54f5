"""Ctrl-C and SIGTERM while a job is submitted and followed: the first one stops the job."""

import signal
from collections.abc import Callable
from types import FrameType

from rich.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Cancellation:
    """Stops the job at the first signal; the second one raises KeyboardInterrupt.

    Inside `with`, signals raise nothing before `set_stop` has been called: a job that is being
    submitted must not be lost before its id is on disk.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stop: Callable[[], None] | None = None
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Cancellation":
        self._before = [signal.signal(n, self._handle) for n in SIGNALS]
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def by_ctrl_c(self) -> bool:
        return self.signal is signal.SIGINT

    def set_stop(self, stop: Callable[[], None]) -> None:
        """Set the function that stops the current job. It is called at once after a signal."""
        self._stop = stop
        if self.requested:
            self._stop_now()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, signal.default_int_handler)
        if self._stop:
            self._stop_now()

    def _stop_now(self) -> None:
        self._console.print("stopping the job; press Ctrl-C again to leave without waiting")
        if self._stop:
            self._stop()
