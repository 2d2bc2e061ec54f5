"""Interface of launched jobs."""

from enum import StrEnum
from typing import Protocol

from hpc_dynamo.messages import Outcome


class JobState(StrEnum):
    """State of a job as its launcher knows it."""

    pending = "pending"
    running = "running"
    ended = "ended"
    unknown = "unknown"  # the scheduler did not respond


class LaunchedJob(Protocol):
    """Job of an attempt."""

    requeuable: bool  # the scheduler may restart it

    def state(self) -> tuple[JobState, str]:
        """Return the state and a detail: the reason for pending, the nodes, or how it ended."""

    def continues_after(self, outcome: Outcome) -> bool:
        """Return True if the job was requeued after it wrote `outcome`, which is then out of date.

        Raises LaunchError if the scheduler does not respond.
        """

    def stop(self) -> None:
        """Request the job to end in order; returns at once."""

    def cancel(self) -> None:
        """End all processes of a job that does not end in order; returns at once."""
