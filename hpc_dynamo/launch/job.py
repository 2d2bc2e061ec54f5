"""Interface of launched jobs."""

from enum import StrEnum
from typing import Protocol


class JobState(StrEnum):
    """State of a job as its launcher knows it."""

    pending = "pending"
    running = "running"
    ended = "ended"
    unknown = "unknown"  # the scheduler did not respond


class LaunchedJob(Protocol):
    """Job of an attempt."""

    def state(self) -> tuple[JobState, str]:
        """Return the state and a detail: the reason for pending, the nodes, or how it ended."""

    def stop(self) -> None:
        """Request all processes of the job to end; returns at once."""
