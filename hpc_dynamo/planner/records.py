"""planner.jsonl of an attempt: every decision, and the result of every role change."""

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import PlannerDecision


class RoleChange(msgspec.Struct, frozen=True, kw_only=True):
    """A role change that ended at `at`. `reason` explains a failure; empty after success."""

    at: float  # seconds since the epoch
    rank: int
    old: Role
    new: Role
    reason: str = ""
    drain_s: float = 0.0
    switch_s: float = 0.0  # from the end of the drain to ready in the new role


class PlannerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the file: a decision or a role change."""

    decision: PlannerDecision | None = None
    role_change: RoleChange | None = None
    skipped: str = ""  # why the move was not made, or only partly
