"""Leases that are out: what each weighs on its workers, until it weighs nothing."""

from dataclasses import dataclass, field

from hpc_dynamo.router.interval_stats import Meter
from hpc_dynamo.router.scheduling.lease import Lease
from hpc_dynamo.router.scheduling.selector import Choice
from hpc_dynamo.router.scheduling.transfer_cost import Handover
from hpc_dynamo.router.scheduling.worker import Member


@dataclass(eq=False)
class Held:
    """One lease, counted on its workers from the start. Every step may come twice or never."""

    lease: Lease
    decode: Member
    prefill: Member | None  # until its part is done
    computes: Member  # the prompt
    promised: int  # tokens of it that are still to be computed
    blocks: int
    handover: Handover  # learns from what we see
    spare: int = 0  # tokens of the answer beyond whole blocks
    ahead: int = 0  # tokens that its prefill worker had to compute until this prompt was done
    since: float = field(init=False)  # of its present part
    lender: Member | None = None  # has the prompt's blocks until the decode worker has them
    arrived: float = 0.0  # the request, at the router
    first_at: float = 0.0  # token, once it is there
    last_at: float = 0.0
    grown: int = 0  # tokens that we were told of, beyond the first

    def __post_init__(self) -> None:
        self.since = self.decode.clock()

    @classmethod
    def begin(
        cls,
        lease: Lease,
        choice: Choice,
        tokens: int,
        block: int,
        handover: Handover,
        arrived: float,
    ) -> "Held":
        decode, prefill, computes = choice.decode, choice.prefill, choice.computes
        held = cls(lease, decode, prefill, computes, choice.left, -(-tokens // block), handover)
        held.arrived, held.lender = arrived, prefill
        if prefill:
            prefill.lent += 1
        computes.prefill_tokens += held.promised
        held.ahead = computes.prefill_tokens
        decode.blocks += held.blocks
        computes.begin()
        for member in choice.workers:
            member.active += 1
            member.turn = lease.id
        return held

    def prefilled(self) -> bool:
        """The prefill worker has done its part; False if it had before, or there is none."""
        if self.prefill is None:
            return False
        now = self.decode.clock()
        self.handover.prefilled(self.ahead, now - self.since)
        self.since = now
        self._leave_prefill()
        return True

    def first_token(self, meter: Meter) -> None:
        """The prompt is computed."""
        self.first_at = self.last_at = self.decode.clock()
        meter.now.ttft_s.add(self.first_at - self.arrived)
        if self.computes is not self.decode and self.prefill is None:
            self.handover.arrived(self.first_at - self.since)
        self._computed()
        self._take_back()

    def grow(self, tokens: int, block: int) -> None:
        more, self.spare = divmod(self.spare + tokens, block)
        self.blocks += more
        self.decode.blocks += more
        self.last_at = self.decode.clock()
        self.grown += tokens

    def end(self, meter: Meter) -> None:
        """Nothing of it is on its workers any more. Once only."""
        itl_s = (self.last_at - self.first_at) / self.grown if self.grown else 0.0
        meter.ended(self.grown + bool(self.first_at), itl_s if self.first_at else 0.0)
        self._leave_prefill()
        self._computed()
        self.decode.blocks -= self.blocks
        self.decode.end()
        self.decode.active -= 1
        self.decode.served += 1
        self._take_back()
        self.decode.settle()

    def _leave_prefill(self) -> None:
        if self.prefill:
            self._computed()
            self.prefill.end()
            self.prefill.active -= 1
            self.prefill.served += 1
            self.prefill.settle()
            self.prefill = None
            self.decode.begin()

    def _take_back(self) -> None:
        """Nobody pulls the prompt's blocks any more."""
        if self.lender:
            self.lender.lent -= 1
            self.lender.settle()
            self.lender = None

    def _computed(self) -> None:
        self.computes.prefill_tokens -= self.promised
        self.promised = 0
