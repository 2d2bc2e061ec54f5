"""Leases that are out, and asks that wait."""

import asyncio
from dataclasses import dataclass, field

from hpc_dynamo.router.lease import Ask, Lease, Target
from hpc_dynamo.router.members import Member


@dataclass(eq=False)
class Held:
    """A lease that is out, and what it weighs on its workers."""

    lease: Lease
    decode: Member
    prefill: Member | None  # until its part is done
    computes: Member  # the prompt
    promised: int  # tokens of it that are still to be computed
    blocks: int
    spare: int = 0  # tokens of the answer beyond whole blocks

    def grow(self, tokens: int, block: int) -> None:
        more, self.spare = divmod(self.spare + tokens, block)
        self.blocks += more
        self.decode.blocks += more


@dataclass(eq=False)
class Waiting:
    ask: Ask
    granted: asyncio.Future[Lease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    timer: asyncio.TimerHandle | None = None


def target(member: Member | None) -> Target | None:
    return Target(member.rank, member.url) if member else None
