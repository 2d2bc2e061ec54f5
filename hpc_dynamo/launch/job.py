"""What every launcher gives: a job that can be asked how it is, and ended."""

from enum import StrEnum
from typing import Protocol


class JobState(StrEnum):
    """As far as the launcher can tell."""

    pending = "pending"
    running = "running"
    ended = "ended"
    unknown = "unknown"  # the scheduler did not answer just now


class LaunchedJob(Protocol):
    """A launched attempt."""

    def state(self) -> tuple[JobState, str]:
        """The state, and what the launcher adds: reason of waiting, nodes, how it ended."""

    def stop(self) -> None:
        """Ask all its processes to end; returns at once."""
