"""planner.jsonl of an attempt: every decision, and what became of every change of role."""

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import PlannerDecision


class RoleChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of role, which ended at `at`. `why` it failed; empty: it is done."""

    at: float  # since the epoch
    rank: int
    old: Role
    new: Role
    reason: str = ""
    drain_s: float = 0.0
    switch_s: float = 0.0  # from the drain's end to ready in the new role


class PlannerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the file: one of these. `left_out`: why a move was not made, or not wholly."""

    decision: PlannerDecision | None = None
    role_change: RoleChange | None = None
    skipped: str = ""
