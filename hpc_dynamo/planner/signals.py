"""Inputs and results of the planner; both are written to planner.jsonl."""

import msgspec

from hpc_dynamo.config import Role


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of one interval of `seconds` that ended at `at`. Means of 0 are unknown."""

    at: float  # seconds since the epoch, or since the start of a simulation
    seconds: float
    requests: int = 0  # arrived
    prompt_tokens: float = 0.0  # mean of the arrived requests
    answer_tokens: float = 0.0  # mean of the finished responses
    hit_rate: float = 0.0  # share of prompt tokens cached on the selected worker
    ttft_s: float = 0.0  # mean since arrival
    itl_s: float = 0.0  # mean of the finished responses
    queued_requests: int = 0  # in the router's queue at the end
    active_requests: int = 0  # leases at the end
    prefill: int = 0  # prefill workers ready at the end
    decode: int = 0  # decode workers ready at the end
    changing_role: int = 0  # workers in neither role
    prefill_requests: float = 0.0  # mean requests per prefill worker
    prefill_tokens: float = 0.0  # mean prompt tokens per prefill worker, not yet computed
    running: float = 0.0  # mean running requests per decode worker
    waiting: float = 0.0  # mean waiting requests per decode worker, in the engine
    slot_usage: float = 0.0  # running and waiting requests per sequence slot of a decode worker
    kv_usage: float = 0.0  # mean share of the decode workers' KV caches in use

    @property
    def rate_hz(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class ExpectedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted load of the next interval."""

    rate_hz: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0


class TargetSplit(msgspec.Struct, frozen=True, kw_only=True):
    """Wanted number of workers per role. `shortfall` names the targets that cannot be met."""

    prefill: int
    decode: int
    reason: str = ""
    shortfall: str = ""


class CapacityGap(msgspec.Struct, frozen=True, kw_only=True):
    """Difference between needed and present workers, in any role."""

    missing: int  # more workers needed for the load
    spare: int  # workers that could be released, with a margin
    role: Role  # role with the largest shortage


class RoleMove(msgspec.Struct, frozen=True, kw_only=True):
    """`count` workers change their role. A role of None is outside the allocation: extra jobs."""

    count: int
    old: Role | None
    new: Role | None


class PlannerDecision(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one interval. `move` is None if the roles stay, for the given reason."""

    signals: Signals
    expected: ExpectedLoad
    target: TargetSplit
    gap: CapacityGap | None = None
    move: RoleMove | None = None
    reason: str = ""
