"""What a planner sees of an interval, and what it makes of that. Records of the run folder."""

import msgspec

from hpc_dynamo.config import Role


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """One interval of `seconds` that ended at `at`, from the router's own view."""

    at: float  # since the epoch, or the simulation's begin
    seconds: float
    requests: int = 0  # that came
    prompt_tokens: float = 0.0  # mean of those that came
    answer_tokens: float = 0.0  # mean of those that ended
    hit_rate: float = 0.0  # share of prompt tokens that were cached where they were sent
    ttft_s: float = 0.0  # mean of first tokens in it, from arrival; 0: there were none
    itl_s: float = 0.0  # mean between tokens of answers that ended
    queued_requests: int = 0  # in the router's line at the end
    active_requests: int = 0  # leases at the end
    prefill: int = 0  # workers ready at the end, by role
    decode: int = 0
    changing_role: int = 0  # workers that change their role, and are of none
    prefill_requests: float = 0.0  # requests that a prefill worker has, mean
    prefill_tokens: float = 0.0  # of prompts given to a prefill worker and not computed, mean
    running: float = 0.0  # requests of a decode worker, mean over the workers
    waiting: float = 0.0  # as above, by the engines' own word
    slot_usage: float = (
        0.0  # what runs and waits there, over the sequences that it decodes at a time
    )
    kv_usage: float = 0.0  # share of a decode worker's KV cache in use, mean

    @property
    def rate_hz(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class ExpectedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load that is expected of the next interval."""

    rate_hz: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0


class TargetSplit(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers of each role; `short` names what is given up where not all can be had."""

    prefill: int
    decode: int
    reason: str = ""
    shortfall: str = ""


class CapacityGap(msgspec.Struct, frozen=True, kw_only=True):
    """What the load makes of all workers that are ready or moving, whatever their roles."""

    missing: int  # would meet it
    spare: int  # could go, with a margin
    role: Role  # that is the shortest


class RoleMove(msgspec.Struct, frozen=True, kw_only=True):
    """`count` workers change their role. To `None`: the allocation gives them up; from `None`:
    it is to grow by them."""

    count: int
    old: Role | None
    new: Role | None


class PlannerDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One interval of a planner: what was seen, expected, wanted, and is to be done."""

    signals: Signals
    expected: ExpectedLoad
    target: TargetSplit
    gap: CapacityGap | None = None
    move: RoleMove | None = None
    reason: str = ""
